"""A CUDA card that isn't there: tensors on ``cuda:0`` without data, every byte, launch, copy and wait counted.

``CardTensor`` says that it is on the card and has a tensor of torch's meta device inside, whose kernels tell shapes
and dtypes; operations across devices raise as on a GPU. ``fake_cuda.cpp`` lets a CPU build of torch run autograd on
such tensors. Beyond it are the kernels' own workspaces, the CUDA context (0.3 to 0.5 GB) and the allocator's
fragmentation.
"""

# ruff: noqa: E402
from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import linecache
import subprocess
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock


class NoCompilerError(RuntimeError):
    """The device guard can't be compiled here."""


def load_guard() -> None:
    """Compile the guard in some seconds and load it: before torch is imported, which looks for CUDA once.

    Raises:
        NoCompilerError: torch is imported already, there is no compiler, or it fails.
    """
    if "torch" in sys.modules:
        raise NoCompilerError("Import benchmarks.fake_cuda before torch, in a process of its own.")
    spec = importlib.util.find_spec("torch")
    root = Path(str(spec and spec.origin)).parent
    source = Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fake_cuda.so"
        command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", str(source), "-o", str(library)]
        command += [f"-I{root / 'include'}", f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"]
        command += [f"-Wl,-rpath,{root / 'lib'}"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except (OSError, subprocess.CalledProcessError) as problem:
            reason = getattr(problem, "stderr", "") or problem
            raise NoCompilerError(f"The simulation compiles {source.name} with g++: {reason}") from problem


load_guard()

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from lib_ziplora.hosts import offload, text_deltas

aten = torch.ops.aten
GB = 1e9
CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
BLOCK = 512
"""The allocator rounds up to this many bytes."""
PRODUCTS = {
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.convolution,
    aten.convolution_backward,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
}
NO_KERNEL = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.detach,
    aten.lift_fresh,
    aten._unsafe_view,
    aten.unbind,
    aten._reshape_alias,
    aten.new_empty,
    aten.new_empty_strided,
}
NEW_SHAPE = {aten.set_, aten.resize_, aten.unsqueeze_, aten.squeeze_, aten.t_, aten.transpose_}
"""Change their argument's shape, which is not written to the one that holds it: none is expected."""
ACROSS = {aten._to_copy, aten.copy_, aten.index}
WAITING = {aten.nonzero, aten.masked_select, aten._unique2, aten.equal, aten.is_nonzero}
INITS = ("kaiming_uniform_", "uniform_", "normal_", "zeros_", "ones_", "constant_", "xavier_uniform_")
LIKELIHOODS = (1.0, 2.0, 2.0, 1.0, 1.0, 1.2, 1.0, 1.1, 1.0, 0.8)
"""Denoising errors that the search for strengths reads: it draws at three strengths and ends."""


def our_line() -> str:
    """The innermost line of the library on the stack."""
    frame = sys._getframe(2)
    while frame is not None and "/lib_ziplora/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.split('/lib_ziplora/')[-1]}:{frame.f_lineno}" if frame else "?"


class CardTensor(Tensor):
    """A tensor without data, on the card or, where it came from there, in main memory; ``inner`` is on meta."""

    inner: Tensor
    ledger: Ledger

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> CardTensor:
        made: CardTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls.ledger.run(func, args, kwargs or {})


def tensors_in(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def without_data(value: Any) -> Any:
    """An argument for a kernel of the meta device. CPU scalars stay: Python's numbers promote no dtype."""
    if isinstance(value, CardTensor):
        return value.inner
    if isinstance(value, Tensor):
        return value.to("meta") if value.ndim else value
    if isinstance(value, (list, tuple)):
        return type(value)(without_data(part) for part in value)
    return value


@dataclass(frozen=True)
class Form:
    """What a tensor looks like."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    def tensor(self, base: Tensor | None) -> Tensor:
        """A new one, or a view of ``base``."""
        if base is not None and base.dtype == self.dtype:
            return base.as_strided(self.size, self.stride, self.offset)
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


def form_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Form(tuple(value.shape), value.stride(), value.storage_offset(), value.dtype)
    return type(value)(map(form_of, value)) if isinstance(value, (list, tuple)) else value


def built(form: Any, base: Tensor | None, device: torch.device, made: list[CardTensor]) -> Any:
    """Tensors of a form, listed in ``made``. (A closure that calls itself would keep them alive.)"""
    if isinstance(form, Form):
        made.append(CardTensor(form.tensor(base), device))
        return made[-1]
    return (
        type(form)(built(part, base, device, made) for part in form)
        if isinstance(form, (list, tuple))
        else form
    )


def shapes_of(value: Any) -> Any:
    """A key of arguments that a kernel can't tell apart."""
    if isinstance(value, CardTensor):
        inner = value.inner
        return inner.shape, inner.stride(), inner.storage_offset(), inner.dtype
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(map(shapes_of, value)) if isinstance(value, (list, tuple)) else (type(value), value)


@dataclass
class Stage:
    """What happened in one stage: bytes on the card, launches, and by line of the library copies and waits."""

    name: str
    peak: int = 0
    launches: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)


class Ledger(TorchDispatchMode):
    """Memory, launches, copies and waits of the card, stage by stage."""

    def __init__(self, capacity: float) -> None:
        super().__init__()
        self.capacity = capacity
        self.live = 0
        self.known: dict[int, weakref.ref[Any]] = {}
        self.stages = [Stage("loading")]
        self.forms: dict[Any, Any] = {}
        self.mixed: Counter[str] = Counter()
        self.likelihoods = list(LIKELIHOODS)

    @property
    def stage(self) -> Stage:
        return self.stages[-1]

    def enter(self, name: str) -> None:
        self.stages.append(Stage(name, peak=self.live))

    def hold(self, tensor: CardTensor) -> None:
        storage = tensor.inner.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if key in self.known:
            return
        if self.live + size > self.capacity:
            raise torch.cuda.OutOfMemoryError(
                f"CUDA out of memory (simulated): {self.live / GB:.2f} GB held, {size / GB:.3f} GB asked for"
            )

        def gone(_: object) -> None:
            if self.known.pop(key, None) is not None:
                self.live -= size

        self.known[key] = weakref.ref(storage, gone)
        self.live += size
        self.stage.peak = max(self.stage.peak, self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation, without data where the card has part in it."""
        packet = func._overloadpacket
        given = [*tensors_in(args), *tensors_in(kwargs.values())] if kwargs else list(tensors_in(args))
        ours = [tensor for tensor in given if isinstance(tensor, CardTensor)]
        device = kwargs.get("device")
        if not ours and (device is None or torch.device(device).type != "cuda"):
            return func(*args, **kwargs)
        if packet is aten._local_scalar_dense:
            return self.scalar(args[0])
        places = {tensor.device.type for tensor in given if tensor.ndim}
        if len(places) > 1 and packet not in ACROSS:
            raise RuntimeError(f"Expected all tensors to be on the same device, in {packet} at {our_line()}")
        if device is None:
            device = CARD if any(tensor.device.type == "cuda" for tensor in ours) else CPU
        else:
            kwargs = {**kwargs, "device": torch.device("meta")}
        device = CARD if torch.device(device).type == "cuda" else CPU
        made: list[CardTensor] = []
        if func._schema.is_mutable and packet not in NEW_SHAPE:
            out = kwargs.get("out", args[0] if args and isinstance(args[0], Tensor) else None)
            made += [out] if isinstance(out, CardTensor) else []
        else:
            out = self.made_of(func, args, kwargs, device, made)
        if packet in PRODUCTS and len({t.dtype for t in given if t.dtype.is_floating_point}) > 1:
            self.mixed[f"{packet} at {our_line()}"] += 1
        if packet in (aten._to_copy, aten.copy_):
            source, target = (args[0], made[0]) if packet is aten._to_copy else (args[1], args[0])
            self.copied(source, target, kwargs.get("non_blocking", False))
        if not func.is_view:
            self.launched(packet, device, made)
        return out

    def made_of(
        self, func: Any, args: Any, kwargs: Mapping[str, Any], device: torch.device, made: list[CardTensor]
    ) -> Any:
        """What an operation gives, put into ``made`` too; meta's kernel is asked once for arguments that look alike."""
        key = (func, shapes_of(args), shapes_of(tuple(kwargs.items())))
        form = self.forms.get(key)
        if form is None:
            result = func(
                *without_data(args), **{name: without_data(value) for name, value in kwargs.items()}
            )
            self.forms[key] = form = form_of(result)
        base = args[0].inner if func.is_view or func._overloadpacket is aten._unsafe_view else None

        return built(form, base, device, made)

    def launched(self, packet: Any, device: torch.device, made: list[CardTensor]) -> None:
        if device is CARD:
            self.stage.launches += packet not in NO_KERNEL
            if packet in WAITING:
                self.stage.waits[our_line()] += 1
            for tensor in made:
                self.hold(tensor)

    def copied(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        pair = (source.device.type, target.device.type)
        if "cuda" in pair and "cpu" in pair:
            line = our_line()
            where = f"{'to' if pair[0] == 'cpu' else 'from'} the card, {line}"
            self.stage.copies[where] += 1
            self.stage.moved[where] += target.numel() * target.element_size()
            if pair[0] == "cuda" and not non_blocking:
                self.stage.waits[line] += 1

    def scalar(self, tensor: Tensor) -> Any:
        """A value with which the run goes on; reading one off the card is a wait."""
        line = our_line()
        if tensor.device.type == "cuda":
            self.stage.waits[line] += 1
        if (
            tensor.dtype == torch.bool
        ):  # that something is as it should be, or (compared) that it is not too small
            file, number = line.split(":") if ":" in line else ("", "0")
            folder = Path(offload.__file__).parents[1]
            return "<=" not in linecache.getline(str(folder / file), int(number))
        if not tensor.dtype.is_floating_point:
            return 100
        return self.likelihoods.pop(0) if "likelihood" in line and self.likelihoods else 0.5

    def listed(self, tensor: Tensor) -> list[Any]:
        if tensor.device.type == "cuda":
            self.stage.waits[our_line()] += 1
        count = tensor.numel()
        if tensor.dtype.is_floating_point:
            return [0.5] * count
        if "train.py" in our_line():
            return list(range(count))
        return [900 - index * (800 // max(1, count)) for index in range(count)]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    **_: Any,
) -> Tensor:
    """What PyTorch takes on a GPU: the flash kernel in half precision, else the efficient one."""
    flash, efficient = aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_efficient_attention
    if attn_mask is None and query.dtype in (torch.float16, torch.bfloat16):
        return flash(query, key, value, 0.0, is_causal, False, scale=scale)[0]
    bias = attn_mask
    if bias is not None:
        bias = torch.zeros_like(bias, dtype=query.dtype) if bias.dtype == torch.bool else bias
        bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    return efficient(query, key, value, bias, True, 0.0, is_causal, scale=scale)[0]


def move(tensor: Tensor, device: torch.device) -> None:
    """As ``offload.move``; a tensor without data also has an inner one."""
    moved = tensor.data.to(device)
    tensor.data = moved
    if isinstance(moved, CardTensor) and isinstance(tensor, CardTensor):
        tensor.inner = moved.inner


@contextlib.contextmanager
def fake_card(gigabytes: float) -> Iterator[Ledger]:
    """Inside the block ``cuda`` is a card with so many GB free beside its context."""
    ledger = CardTensor.ledger = Ledger(gigabytes * GB)
    tolist = Tensor.tolist

    def listed(tensor: Tensor) -> Any:
        return ledger.listed(tensor) if isinstance(tensor, CardTensor) else tolist(tensor)

    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "device_count", lambda: 1),
            (
                torch.cuda,
                "mem_get_info",
                lambda *_: (int(ledger.capacity - ledger.live), int(ledger.capacity)),
            ),
            (torch.cuda, "memory_reserved", lambda *_: ledger.live),
            (torch.cuda, "memory_allocated", lambda *_: ledger.live),
            (torch.cuda, "empty_cache", lambda: None),
            (torch.cuda, "synchronize", lambda *_: None),
            (torch.cuda, "reset_peak_memory_stats", lambda *_: None),
            (torch.cuda, "max_memory_reserved", lambda *_: ledger.stage.peak),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (Tensor, "tolist", listed),
            (optimizer, "_foreach_supported_types", [Tensor, nn.Parameter, CardTensor]),
            (F, "scaled_dot_product_attention", attention),
            (offload, "move", move),
            (text_deltas, "move", move),
            *((torch.nn.init, name, lambda tensor, *_, **__: tensor) for name in INITS),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(..., device="cuda") is made there
        stack.enter_context(ledger)
        yield ledger
