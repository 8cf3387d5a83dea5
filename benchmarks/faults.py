"""Faults in the middle of merges and drawings: afterwards the host's model is bit for bit what it was.

Each case begins a merge or a picture and, at the k-th layer call of one of its stages, presses Interrupt, raises an
exception or a KeyboardInterrupt, or runs out of memory (once, or from then on). Then weights, buffers, gradients and
their flags, training flags, hooks, the modules themselves and the random state must be what they were, nothing may be
left in the output's folder, and the error must be the one that was raised or the one in words. In the end an
undisturbed merge must give the same tensors as before all faults.

``python -m benchmarks.faults --cases N --seed S`` runs over diffusers and MiniXL; case I of a seed is always the same
(``--first I --cases 1`` repeats it). ``tests/hosts/test_a1111_faults.py`` runs in a WebUI.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.errors import Interrupted, OutOfMemoryError, ZipLoraError
from lib_ziplora.hosts import Picture, Progress, Sampler
from lib_ziplora.hosts.standalone import StandaloneHost, _parts, text
from lib_ziplora.lora.formats.keys import canonical_unet_name
from lib_ziplora.pipeline.merge import run
from tests.support import minixl

OUTPUT = "faulty"
SIZE = 64
MERGING = ("encoding", "sampling", "recording", "solving", "forward", "recomputing", "backward")
DRAWING = ("wearing", "drawing")
KINDS = ("interrupt", "exception", "keyboard", "memory", "memory from then on")
BY_OPERATOR = ("recording", "solving", "wearing")
"""Stages without layer calls of their own: their operators are counted."""
ADDING = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)
"""What puts a LoRA into the weights of text encoders and norms."""
QUICK: dict[str, Any] = {
    "steps": 2,
    "sampling_steps": 2,
    "trajectories": 1,
    "width": SIZE,
    "height": SIZE,
} | {
    "guidance_scale": 1.0,
    "combined_weight": 0.0,
    "balance": 0.0,
}
VARIANTS: tuple[dict[str, Any], ...] = (
    {"checkpointing": "on"},
    {"checkpointing": "off", "batching": "separate"},
    {"images": True, "combined_weight": 10.0},
    {"method": "instant", "guidance_scale": 5.0},
    {"method": "balanced", "balance": 0.3},
)
"""Settings of the merges; ``images`` gives the subject a reference image."""
ROW = 10
"""Cases in a row that have the same variant."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS[:2])


class Fault(Exception):
    """An error that nobody foresaw."""


MEMORY: tuple[Callable[[], Exception], ...] = (
    lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    lambda: RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes"
    ),
    MemoryError,
)


@dataclass(frozen=True)
class Place:
    """A host with two LoRAs that change UNet and text encoders.

    Attributes:
        host: merges and draws.
        parts: modules that must not change.
        folder: where its merges go.
        names: of the two LoRAs, as the host resolves them.
        image: a reference image.
        surroundings: what else must not change.
    """

    host: Any
    parts: Sequence[nn.Module]
    folder: Path
    names: tuple[str, str]
    image: Path
    surroundings: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Case:
    """One fault: at call ``number`` of a stage; ``error`` is what running out of memory raises."""

    index: int
    variant: dict[str, Any]
    stage: str
    number: int
    kind: str
    error: Callable[[], Exception]

    def __str__(self) -> str:
        about = ", ".join(f"{name} {value}" for name, value in self.variant.items())
        return f"case {self.index}: {self.kind} at call {self.number} of {self.stage} ({about})"


@dataclass
class Injector:
    """Counts the calls of every stage, and acts at one of them.

    Attributes:
        wanted: the stage to act in; "" counts only.
        number: of the call, from 0.
        act: what happens there.
        lasting: at every later call of the stage too.
        stage: of the run, as it tells by itself.
    """

    wanted: str = ""
    number: int = -1
    act: Callable[[], None] = lambda: None
    lasting: bool = False
    stage: str = ""
    counts: Counter[str] = field(default_factory=Counter)

    def reach(self, stage: str) -> None:
        number = self.counts[stage]
        self.counts[stage] += 1
        if stage == self.wanted and (number == self.number or (self.lasting and number > self.number)):
            self.act()

    def follow(self, progress: Progress) -> None:
        self.stage = progress.stage

    def before_layer(self, module: nn.Module, _inputs: Any) -> None:
        if next(module.children(), None) is not None:
            return
        if self.stage != "optimising":
            self.reach(self.stage)
        else:
            in_backward = torch._C._current_graph_task_id() != -1
            self.reach("recomputing" if in_backward else "forward")

    def after_layer(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self.before_gradient)

    def before_gradient(self, _gradient: Tensor) -> None:
        self.reach("backward")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Hooks of PyTorch's own on every module, so that no module's are touched."""
        handles = [
            global_hooks.register_module_forward_pre_hook(self.before_layer),
            global_hooks.register_module_forward_hook(self.after_layer),
        ]
        try:
            with Operators(self) if self.wanted in ("", *BY_OPERATOR) else nullcontext():
                yield
        finally:
            for handle in handles:
                handle.remove()


class Operators(TorchDispatchMode):
    """Tells an injector of the operators that record and solve."""

    def __init__(self, injector: Injector) -> None:
        super().__init__()
        self.injector = injector

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.injector.stage == "solving":
            self.injector.reach("solving")
        elif self.injector.stage == "sampling" and func is torch.ops.aten.randperm.generator:
            self.injector.reach("recording")
        return func(*args, **(kwargs or {}))


def state_of(place: Place) -> dict[str, Any]:
    """Everything that a fault could leave changed, apart from tensors' values."""
    found: dict[str, Any] = {
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled()),
        "dtype": torch.get_default_dtype(),
        "global hooks": [list(getattr(global_hooks, name)) for name in GLOBAL_HOOKS],
        "files": sorted(path.name for path in place.folder.iterdir()),
        "surroundings": place.surroundings(),
    }
    for number, part in enumerate(place.parts):
        for name, module in part.named_modules():
            hooks = [list(map(id, getattr(module, kind).values())) for kind in HOOKS]
            own = sorted(module.__dict__)
            found[f"{number}.{name} module"] = (id(module), type(module), module.training, hooks, own)
        for name, tensor in _tensors(part):
            about = (id(tensor), tensor.data_ptr(), tensor.dtype, tensor.device, tensor.requires_grad)
            found[f"{number}.{name} tensor"] = (*about, tensor.grad is None)
    return found


def _tensors(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from part.named_parameters()
    yield from part.named_buffers()


def values_of(place: Place) -> list[Tensor]:
    """Copies of all parameters and buffers."""
    return [tensor.detach().clone() for part in place.parts for _, tensor in _tensors(part)]


def same_values(place: Place, before: Sequence[Tensor]) -> bool:
    """Bit for bit: NaN equals itself, and 0 is not -0."""
    now = [tensor.detach() for part in place.parts for _, tensor in _tensors(part)]
    return len(now) == len(before) and all(
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) if a.ndim else a == b
        for a, b in zip(now, before, strict=True)
    )


def request(place: Place, variant: dict[str, Any], output: str = OUTPUT) -> MergeRequest:
    """A merge of a second or so."""
    settings = MergeSettings(**{**QUICK, **{k: v for k, v in variant.items() if k != "images"}})
    images = (str(place.image),) if variant.get("images") else ()
    subject, style = (LoraInput(name, "") for name in place.names)
    subject = dataclasses.replace(subject, prompt="a sks icon", images=images)
    style = dataclasses.replace(style, prompt="a bell icon in szn style")
    return MergeRequest.pair(subject, style, output, settings=settings)


def work(place: Place, stage: str, variant: dict[str, Any], injector: Injector) -> None:
    """The merge, or for a stage of drawing the pictures, under the injector's eyes."""
    host = place.host
    with host.exclusive(), injector.at_work():
        if stage in DRAWING:
            draw(host, place.names, injector)
        else:
            run(request(place, variant), host, injector.follow)


def draw(host: Any, names: Sequence[str], injector: Injector) -> None:
    """Two pictures, the second with other LoRAs on."""

    def stop_if_asked() -> None:
        if host.interrupted():
            raise Interrupted("enough")

    injector.stage = "drawing"
    sampler = Sampler(steps=2, guidance_scale=3.0, width=SIZE, height=SIZE)
    with host.drawing(sampler, 2) as pen:
        for loras in (((names[0], 1.0), (names[1], 0.5)), ((names[1], 1.0),)):
            pen.draw(Picture("a sks icon", loras, 3), stop_if_asked)


def clear(place: Place) -> None:
    """Remove what a finished merge has written."""
    for path in place.folder.glob(f"{OUTPUT}*"):
        path.unlink()


@dataclass
class Campaign:
    """Cases on one host, counted once for every variant."""

    place: Place
    counted: dict[str, Counter[str]] = field(default_factory=dict)
    endings: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.result = self._undisturbed()
        self.values, self.state = values_of(self.place), state_of(self.place)

    def _undisturbed(self) -> dict[str, Tensor]:
        """The tensors of a merge; transformers and diffusers have set themselves up by its end."""
        work(self.place, "drawing", {}, Injector())
        work(self.place, "", VARIANTS[0], Injector())
        tensors = load_file(str(self.place.folder / f"{OUTPUT}.safetensors"))
        clear(self.place)
        return tensors

    def counts(self, variant: dict[str, Any]) -> Counter[str]:
        """How many calls each stage has in an undisturbed run."""
        if repr(variant) not in self.counted:
            injector = Injector()
            work(self.place, "", variant, injector)
            work(self.place, "drawing", variant, injector)
            clear(self.place)
            self.counted[repr(variant)] = injector.counts
        return self.counted[repr(variant)]

    def case(self, index: int, seed: int) -> Case:
        """The case of that number."""
        pick = random.Random(f"{seed}/{index}")
        variant = VARIANTS[index // ROW % len(VARIANTS)]
        counts = self.counts(variant)
        stage = pick.choice([stage for stage in MERGING + DRAWING if counts[stage]])
        return Case(
            index, variant, stage, pick.randrange(counts[stage]), pick.choice(KINDS), pick.choice(MEMORY)
        )

    def problems(self, case: Case) -> list[str]:
        """What is wrong after a case."""
        raised: list[BaseException] = []

        def act() -> None:
            if case.kind == "interrupt":
                self.place.host.interrupt()
                return
            error = {"exception": Fault, "keyboard": KeyboardInterrupt}.get(case.kind, case.error)()
            raised.append(error)
            raise error

        injector = Injector(case.stage, case.number, act, case.kind == "memory from then on")
        ended: BaseException | None = None
        try:
            work(self.place, case.stage, case.variant, injector)
        except (Fault, KeyboardInterrupt, ZipLoraError, RuntimeError, MemoryError) as error:
            ended = error
        clear(self.place)
        name = type(ended).__name__ if ended else "finished"
        self.endings[f"{case.stage}: {case.kind}: {name}"] += 1
        wrong = [] if as_expected(case, raised, ended) else [f"it ended with {ended!r}"]
        return [f"{case}: {words}" for words in wrong + self.changes()]

    def changes(self) -> list[str]:
        """What is not as it was before all cases."""
        now = state_of(self.place)
        names = [name for name in {**self.state, **now} if self.state.get(name) != now.get(name)]
        found = [f"{len(names)} things changed, {names[:3]}"] if names else []
        return found if same_values(self.place, self.values) else [*found, "weights or buffers changed"]

    def repeated(self) -> list[str]:
        """Whether an undisturbed merge still gives the same."""
        again = self._undisturbed()
        same = again.keys() == self.result.keys() and all(
            torch.equal(again[k], self.result[k]) for k in again
        )
        return ([] if same else ["a merge afterwards gives other tensors"]) + self.changes()


def as_expected(case: Case, raised: Sequence[BaseException], ended: BaseException | None) -> bool:
    """Whether a run ended as it should after its fault."""
    if case.kind == "interrupt":
        return isinstance(ended, Interrupted) or (ended is None and case.stage in DRAWING)
    if not case.kind.startswith("memory"):
        return ended is raised[0]
    if case.stage in DRAWING:
        return ended is raised[0]  # the front ends put it into words
    smaller = case.stage in ("forward", "recomputing", "backward") and len(raised) == 1
    return isinstance(ended, OutOfMemoryError) or (ended is None and smaller)


def campaign(place: Place, cases: int, seed: int, first: int = 0) -> tuple[list[str], Counter[str]]:
    """Run cases; what is wrong after them, in words, and how they ended."""
    runs = Campaign(place)
    found = [line for index in range(first, first + cases) for line in runs.problems(runs.case(index, seed))]
    return found + runs.repeated(), runs.endings


def shallow_minixl(folder: Path) -> Path:
    """MiniXL with a random UNet of one layer a block: a fault is the same in it and costs a quarter."""
    from diffusers import UNet2DConditionModel

    folder.mkdir()
    for part in minixl.MODEL.iterdir():
        if part.name != "unet":
            (folder / part.name).symlink_to(part)
    config = UNet2DConditionModel.load_config(minixl.MODEL / "unet")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(
            {**config, "layers_per_block": 1, "transformer_layers_per_block": 1}
        )
    unet.half().save_pretrained(folder / "unet")
    return folder


def write_lora(file: Path, modules: Mapping[str, nn.Module], seed: int) -> None:
    """Random factors for linear layers and convolutions, a random difference for norms."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        weight = module.get_parameter("weight")
        if weight.ndim == 1:
            for part in ("w_norm", "b_norm"):
                tensors[f"{name}.{part}"] = 0.05 * torch.randn(weight.shape, generator=generator)
            continue
        rows, *columns = weight.shape
        down = torch.randn(4, *columns, generator=generator)
        up = torch.randn(rows, 4, *(1 for _ in columns[1:]), generator=generator)
        for part, tensor in {"lora_down": 0.05 * down, "lora_up": up}.items():
            tensors[f"{name}.{part}.weight"] = tensor
        tensors[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(tensors, str(file), {"ss_base_model_version": "sdxl_base_v1-0"})


def diffusers_place(folder: Path) -> Place:
    """A shallow MiniXL in diffusers; the LoRAs change attentions, a convolution, a norm and both text encoders."""
    from PIL import Image

    inputs, outputs = folder / "inputs", folder / "outputs"
    inputs.mkdir()
    outputs.mkdir()
    host = StandaloneHost(shallow_minixl(folder / "model"), [outputs, inputs], device="cpu")
    pipeline = host.pipeline()
    unet = {canonical_unet_name(path) or "": module for path, module in pipeline.unet.named_modules()}
    modules = {name: m for name, m in unet.items() if name.endswith(("_to_q", "_to_v", "_in_layers_2"))}
    norm = next(name for name, module in unet.items() if isinstance(module, nn.LayerNorm))
    encoders = text.text_modules([pipeline.text_encoder, pipeline.text_encoder_2])
    modules |= {norm: unet[norm]} | {n: m for n, m in encoders.items() if "text_projection" not in n}
    names = ("subject", "style")
    for seed, name in enumerate(names):
        write_lora(inputs / f"{name}.safetensors", modules, seed)
    image = folder / "reference.png"
    Image.new("RGB", (SIZE, SIZE), "tomato").save(image)

    def surroundings() -> dict[str, Any]:
        bar = dict(getattr(pipeline, "_progress_bar_config", {}))
        return {
            "scheduler": id(pipeline.scheduler),
            "bar": bar | {"disable": None},
            "lock": host._lock.locked(),
        }

    return Place(host, _parts(pipeline), outputs, names, image, surroundings)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found, endings = campaign(diffusers_place(Path(folder)), options.cases, options.seed, options.first)
    for name, count in sorted(endings.items()):
        print(f"{count:5} {name}")
    print(f"{options.cases} cases in {time.monotonic() - started:.0f} s, {len(found)} problems")
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
