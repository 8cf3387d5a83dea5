"""LoRA files in every dialect, made in memory, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lib_ziplora.lora.layer import LoraLayer

from .sdxl_names import Module, canonical, text_modules, unet_modules

UNET = {canonical(module): module for module in unet_modules()}
TEXT = {canonical(module, f"te{encoder}"): module for encoder in (1, 2) for module in text_modules(encoder)}

Q = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
K2 = "lora_unet_middle_block_1_transformer_blocks_1_attn2_to_k"
OUT = "lora_unet_output_blocks_5_1_transformer_blocks_0_attn2_to_out_0"
CONV = "lora_unet_input_blocks_4_0_in_layers_2"
SKIP = "lora_unet_input_blocks_4_0_skip_connection"
UPSAMPLER = "lora_unet_output_blocks_2_2_conv"
TE1 = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
TE2 = "lora_te2_text_model_encoder_layers_3_mlp_fc1"


def layer(
    name: str,
    out: int = 6,
    columns: int | tuple[int, ...] = 5,
    rank: int = 3,
    alpha: float | None = None,
    seed: int = 0,
    size: float = 0.1,
) -> LoraLayer:
    """A random layer; ``columns`` is in, or (in, kh, kw)."""
    generator = torch.Generator().manual_seed(seed + 1000 * rank + out)
    shape = (columns,) if isinstance(columns, int) else columns
    down = size * torch.randn(rank, *shape, generator=generator)
    up = size * torch.randn(out, rank, generator=generator)
    return LoraLayer(name, down, up, float(rank) if alpha is None else alpha)


def layers(*items: LoraLayer) -> dict[str, LoraLayer]:
    return {item.name: item for item in items}


def sample_layers(seed: int = 0) -> dict[str, LoraLayer]:
    """A little of everything: attention, convolutions of both sizes, both text encoders, several ranks."""
    return layers(
        layer(Q, seed=seed),
        layer(K2, 4, 7, 2, 1.0, seed=seed),
        layer(OUT, 6, 6, 4, 2.0, seed=seed),
        layer(CONV, 5, (4, 3, 3), 3, 1.5, seed=seed),
        layer(SKIP, 5, 4, 2, seed=seed),
        layer(TE1, 4, 4, 2, seed=seed),
        layer(TE2, 8, 4, 2, 4.0, seed=seed),
    )


def _section(name: str) -> str:
    return name.split("_")[1]


def _module(name: str) -> Module:
    return UNET.get(name) or TEXT[name]


def _diffusers_prefix(name: str) -> str:
    return {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}[_section(name)]


def kohya(name: str) -> tuple[str, str, str]:
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"


def kohya_diffusers(name: str) -> tuple[str, str, str]:
    return kohya(f"lora_{_section(name)}_{_module(name).diffusers.replace('.', '_')}")


def lycoris(name: str) -> tuple[str, str, str]:
    """LyCORIS's own wrapper names UNet layers alone; text layers stay kohya's."""
    if _section(name) != "unet":
        return kohya(name)
    return kohya(f"lycoris_{_module(name).diffusers.replace('.', '_')}")


def diffusers(name: str) -> tuple[str, str, str]:
    path = f"{_diffusers_prefix(name)}.{_module(name).diffusers}"
    return f"{path}.lora_A.weight", f"{path}.lora_B.weight", f"{path}.alpha"


def diffusers_down_up(name: str) -> tuple[str, str, str]:
    path = f"{_diffusers_prefix(name)}.{_module(name).diffusers}"
    middle = "lora" if _section(name) == "unet" else "lora_linear_layer"
    return f"{path}.{middle}.down.weight", f"{path}.{middle}.up.weight", f"{path}.alpha"


def peft(name: str) -> tuple[str, str, str]:
    path = f"base_model.model.{_diffusers_prefix(name)}.{_module(name).diffusers}"
    return f"{path}.lora_A.default.weight", f"{path}.lora_B.default.weight", f"{path}.alpha"


def comfy(name: str) -> tuple[str, str, str]:
    if _section(name) != "unet":
        return kohya(name)
    path = f"diffusion_model.{_module(name).sgm}"
    return f"{path}.lora_A.weight", f"{path}.lora_B.weight", f"{path}.alpha"


Naming = Callable[[str], tuple[str, str, str]]
DIALECTS: dict[str, Naming] = {
    "kohya": kohya,
    "kohya-diffusers": kohya_diffusers,
    "lycoris": lycoris,
    "diffusers": diffusers,
    "diffusers-down-up": diffusers_down_up,
    "peft": peft,
    "comfy": comfy,
}


def tensors(
    items: Mapping[str, LoraLayer],
    naming: Naming = kohya,
    *,
    dtype: torch.dtype = torch.float32,
    with_alpha: bool = True,
    as_convolution: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a file; ``as_convolution`` writes matrices as 1x1 convolutions."""
    result = {}
    for name, item in items.items():
        down_key, up_key, alpha_key = naming(name)
        down, up = item.down, item.up
        if down.ndim == 4 or as_convolution:
            up = up[:, :, None, None]
            down = down if down.ndim == 4 else down[:, :, None, None]
        result[down_key] = down.to(dtype).contiguous()
        result[up_key] = up.to(dtype).contiguous()
        if with_alpha:
            result[alpha_key] = torch.tensor(item.alpha)
    return result


def save(path: Path, content: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    save_file(dict(content), path, dict(metadata or {}))
    return path


def only(folder: Path, *names: str) -> bool:
    """Whether a folder holds these files and nothing else."""
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def assert_same_deltas(
    ours: Mapping[str, LoraLayer], theirs: Mapping[str, LoraLayer], rtol: float = 1e-5, atol: float = 1e-7
) -> None:
    assert set(ours) == set(theirs)
    for name, item in ours.items():
        expected = theirs[name].delta()
        assert item.delta().shape == expected.shape, name
        torch.testing.assert_close(
            item.delta(), expected, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


class Largest(TorchDispatchMode):
    """The size of the largest tensor that an operation has made, in numbers."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result
