"""A host in memory: a pico UNet with SDXL's block names, folders of LoRAs, text by hashing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_ziplora.denoiser import Conditioning, TextDeltas
from lib_ziplora.errors import HostError, LoraFileError
from lib_ziplora.hosts import CheckpointInfo, InstalledLora, Progress
from lib_ziplora.names import validate_output

WIDTH, CONTEXT = 8, 6
TEXT_LAYER = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"


class Attention(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(context, WIDTH, bias=False)
        self.to_v = nn.Linear(context, WIDTH, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        weights = (self.to_q(tokens) @ self.to_k(context).transpose(1, 2) / WIDTH**0.5).softmax(-1)
        return self.to_out[0](weights @ self.to_v(context))


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = Attention(WIDTH), Attention(CONTEXT)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        tokens = tokens + self.attn1(tokens, tokens)
        return tokens + self.attn2(tokens, context)


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([TransformerBlock()])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return tokens.transpose(1, 2).reshape(x.shape)


class PicoSdxl(nn.Module):
    """Convolution, two transformers at SDXL's places, convolution."""

    def __init__(self) -> None:
        super().__init__()
        empty = [nn.ModuleList([]) for _ in range(3)]
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(4, WIDTH, 3, padding=1)]), *empty]
            + [nn.ModuleList([nn.Identity(), SpatialTransformer()]) for _ in range(2)]
        )
        self.out = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Conv2d(WIDTH, 4, 3, padding=1)])

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        h = self.input_blocks[0][0](x) * (1 + t.to(x.dtype).reshape(-1, 1, 1, 1) / 1000)
        for block in self.input_blocks[4:]:
            h = block[1](h, context)
        return self.out[2](F.silu(h))


class PicoDenoiser:
    def __init__(self, host: PicoHost) -> None:
        self.host, self.unet = host, host.unet
        self.alphas_cumprod = torch.linspace(0.999, 0.005, 1000)
        self.prediction_type = "epsilon"
        self.latent_channels = 4
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        self.host.forwards += 1
        self.host.before_forward(self.host.forwards)
        return self.unet(x_t, t, cond.context)

    def checkpoint_blocks(self) -> Sequence[nn.Module]:
        return [module for module in self.unet.modules() if isinstance(module, TransformerBlock)]


class PicoHost:
    """``Host`` and ``Session`` in one; ``before_forward(n)`` may interrupt or fail."""

    name = "pico"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.unet = PicoSdxl().requires_grad_(False)
        self.forwards = 0
        self.before_forward = lambda count: None
        self.stop = self.finish = False
        self.alive = True
        self.refusal = ""
        self.opened = 0
        self.encoded: list[tuple[list[str], bool, dict[str, Tensor]]] = []
        self.events: list[Progress] = []
        self.refreshed: list[Path] = []
        self.cards: dict[str, dict[str, Any]] = {}
        self.text_weights: dict[str, Tensor] = {}

    def loras(self) -> Sequence[InstalledLora]:
        files = sorted(self.folder.rglob("*.safetensors"))
        return [InstalledLora(file.stem, file, self.cards.get(file.stem, {})) for file in files]

    def resolve(self, lora: str) -> Path:
        path = next(self.folder.rglob(f"{lora}.safetensors"), None)
        if path is None:
            raise LoraFileError(f"There is no LoRA {lora}.")
        return path

    def output_path(self, name: str) -> Path:
        return self.folder / f"{validate_output(name)}.safetensors"

    def checkpoint(self) -> CheckpointInfo:
        return CheckpointInfo("pico", "ab" * 32)

    def check(self) -> None:
        if self.refusal:
            raise HostError(self.refusal)

    @contextmanager
    def open(self) -> Iterator[PicoHost]:
        self.opened += 1
        try:
            yield self
        finally:
            self.opened -= 1

    @property
    def native_size(self) -> int:
        return 128

    @property
    def denoiser(self) -> PicoDenoiser:
        return PicoDenoiser(self)

    def encode_prompts(
        self, prompts: Sequence[str], *, width: int, height: int, negative: bool, deltas: TextDeltas
    ) -> Conditioning:
        self.encoded.append((list(prompts), negative, {name: delta() for name, delta in deltas.items()}))
        rows = []
        for prompt in prompts:
            seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")
            rows.append(torch.randn(1, 4, CONTEXT, generator=torch.Generator().manual_seed(seed)))
        return Conditioning(torch.cat(rows), torch.zeros(len(rows), 2))

    def text_weight(self, name: str) -> Tensor | None:
        return self.text_weights.get(name)

    def encode_images(self, images: Tensor, *, seed: int) -> Tensor:
        return F.adaptive_avg_pool2d(images, (images.shape[2] // 8, images.shape[3] // 8)).repeat(1, 2, 1, 1)[
            :, :4
        ]

    def unet_alone(self) -> Any:
        return nullcontext()

    def check_alive(self) -> None:
        if not self.alive:
            raise HostError("The checkpoint was changed during the merge.")

    def exclusive(self) -> Any:
        return nullcontext()

    def report(self, progress: Progress) -> None:
        self.events.append(progress)

    def interrupted(self) -> bool:
        return self.stop

    def finish_requested(self) -> bool:
        return self.finish

    def interrupt(self) -> None:
        self.stop = True

    def finish_now(self) -> None:
        self.finish = True

    def refresh(self, path: Path) -> None:
        self.refreshed.append(path)


def module_names() -> dict[str, tuple[int, ...]]:
    """kohya name -> weight shape of every layer of the pico UNet."""
    return {
        f"lora_unet_{path.replace('.', '_')}": tuple(module.weight.shape)
        for path, module in PicoSdxl().named_modules()
        if hasattr(module, "weight")
    }


def write_kohya(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rank: int = 2,
    alpha: float = 1.0,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A random LoRA file in kohya's layout."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, *shape[1:], generator=generator) * 0.6
        ones = (1,) * (len(shape) - 2)
        tensors[f"{name}.lora_up.weight"] = torch.randn(shape[0], rank, *ones, generator=generator) * 0.6
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, dict(metadata or {}))
    return path
