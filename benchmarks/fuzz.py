"""Damaged and hostile LoRA files and sidecars: each must end in a LoRA or in one of our own errors.

Files of every family and dialect, and sidecars, are made from a seed, damaged, and read: header, shapes, all of it.
A file fails with any exception but ours, with a layer that is not finite, after half a second of processor time, or
when the process has grown by more than ten times the file (and 32 MB, which torch takes for itself).
``python -m benchmarks.fuzz --files N --seed S``.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from lib_ziplora.errors import ZipLoraError
from lib_ziplora.lora.formats.families import FAMILIES
from lib_ziplora.lora.formats.peft_config import HEADER_KEY, SIDECAR
from lib_ziplora.lora.io.inspect import inspect_header, unsupported_reason
from lib_ziplora.lora.io.metadata import read_recipe
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.sidecar import Sidecar
from lib_ziplora.lora.io.size import expected_size, file_shapes
from lib_ziplora.report.saved import read_saved
from tests.lora.adapter_samples import SAMPLES
from tests.lora.files import CONV, DIALECTS, SKIP, TE1, TE2, Q, sample_layers, tensors
from tests.lora.test_families import module_of, named

SECONDS = 0.5
TIMES = 10
ALLOWANCE = 32 << 20
SIZES = (0, 1, 2, 3, 5, 8, 12, 33, 1000, 1 << 16, 1 << 28, 1 << 31, 1 << 40, 1 << 63, 1 << 70, -1)
WORDS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I8", "U8", "BOOL", "F4", "", None, 3)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    1e400,
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    {"a": {}},
    "9" * 300,
)
TAILS = sorted({tail for family in FAMILIES.values() for tail in family.tails} | {"alpha", "scale", "weight"})
MODULES = (Q, CONV, SKIP, TE1, TE2)

Random = random.Random


def base(chance: Random) -> tuple[str, bytes]:
    """(name of the file, content) of a whole file of some family and dialect, or of a sidecar."""
    kind = chance.random()
    if kind < 0.1:
        vectors = tuple({Q: torch.rand(5)} for _ in range(2))
        return "f.ziplora", Sidecar(vectors, {"settings": {}, "loras": [], "learnt": True}).pack()
    metadata = {"ss_tag_frequency": '{"a": {"b": 1}}'}
    if chance.random() < 0.3:
        metadata[HEADER_KEY] = json.dumps(config(chance, "unet."))
    if kind < 0.4:
        content = tensors(
            sample_layers(chance.randrange(9)),
            DIALECTS[chance.choice(sorted(DIALECTS))],
            dtype=chance.choice((torch.float16, torch.bfloat16, torch.float32)),
            with_alpha=chance.random() < 0.5,
        )
    else:
        content = {}
        for _ in range(chance.randrange(1, 3)):
            sample = SAMPLES[chance.choice(sorted(SAMPLES))]
            content |= named(module_of(sample), sample.parts)
    if chance.random() < 0.3:
        name = chance.choice(sorted(content))
        size = chance.choice((float("nan"), float("inf"), 1e30, 3e38, 1e300, 0.0, -1e-40))
        content[name] = torch.full_like(content[name], size, dtype=torch.float64)
        if abs(size) < 3.4e38 and chance.random() < 0.5:
            content[name] = content[name].float()
    return "f.safetensors", save(content, metadata)


def config(chance: Random, component: str = "") -> dict[str, Any]:
    """A PEFT configuration, sound or not."""
    given: dict[str, Any] = {"peft_type": chance.choice(("LORA", "LORA", "LOHA", 3)), "r": 3, "lora_alpha": 6}
    for key in ("lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "r", "init_lora_weights"):
        if chance.random() < 0.2:
            given[key] = chance.choice((*VALUES, {"to_q": 2}, {"(a+)+$": 1}, {".*": None}, {"[": 1}))
    return {component + key: value for key, value in given.items()}


def cut(content: bytes, chance: Random) -> bytes:
    return content[: chance.randrange(len(content))]


def flipped(content: bytes, chance: Random) -> bytes:
    """A few bytes changed, mostly in the header."""
    changed = bytearray(content)
    end = len(content)
    if chance.random() < 0.7:
        end = min(end, 8 + int.from_bytes(content[:8], "little"))
    for _ in range(chance.randrange(1, 6)):
        changed[chance.randrange(end)] ^= chance.randrange(1, 256)
    return bytes(changed)


def header_changed(content: bytes, chance: Random) -> bytes:
    """The header's JSON changed in one or two places, and the length with it."""
    start = 8 + int.from_bytes(content[:8], "little")
    table, data = json.loads(content[8:start]), content[start:]
    for _ in range(chance.randrange(1, 3)):
        key = chance.choice(sorted(table))
        entry = table[key]
        field = chance.choice(("dtype", "shape", "data_offsets", "name", "gone", "entry", "metadata"))
        if field == "metadata":
            table["__metadata__"] = chance.choice(
                (*VALUES, {"ziplora": "[" * 9000}, {"a": {"b": 1}}, {"a": 1.5})
            )
        elif field == "gone":
            del table[key]
        elif field == "name":
            module, tail = chance.choice(MODULES), chance.choice(TAILS)
            table[chance.choice((f"{module}.{tail}", f"lora_unet_x.{tail}", "\ud800", ""))] = entry
        elif field == "entry" or not isinstance(entry, dict):
            table[key] = chance.choice(VALUES)
        elif field == "dtype":
            entry["dtype"] = chance.choice(WORDS)
        elif field in entry:
            count = chance.choice((0, 1, 2, 3, 4, 5, 9, 33, 2000)) if field == "shape" else 2
            entry[field] = [chance.choice(SIZES) for _ in range(count)]
            if field == "shape" and chance.random() < 0.5:
                offset = entry.get("data_offsets")
                entry["shape"] = [0, *entry["shape"]]
                entry["data_offsets"] = (
                    [offset[0], offset[0]] if isinstance(offset, list) and offset else [0, 0]
                )
        if not table:
            break
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


def hostile(content: bytes, chance: Random) -> bytes:
    """A header of many small things."""
    piece, count = (
        chance.choice(("{},", "[],", "[", '{"a":', "1,", '"",', " ")),
        chance.choice((9, 999, 99_999)),
    )
    place = chance.choice(
        ('{"__metadata__":[%s', '{"__metadata__":{"a":[%s', '{"a":{"shape":[%s', '{"a":%s', "{%s")
    )
    text = (place % (piece * count)).encode()
    return len(text).to_bytes(8, "little") + text + content[-20:]


CHANGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    cut,
    flipped,
    header_changed,
    header_changed,
    hostile,
)


def weights(name: str) -> torch.Tensor | None:
    """A checkpoint's layer for those families that need one."""
    shapes = {CONV: (12, 8, 3, 3), SKIP: (12, 8, 1, 1)}
    return torch.ones(shapes.get(name, (12, 8)))


def read(file: Path, with_weights: bool) -> str:
    """Read a file in every way; how it ended.

    Raises:
        Exception: anything but our own errors.
    """
    try:
        if file.suffix == ".ziplora":
            read_saved(file)
            return "read"
        header = inspect_header(file)
        unsupported_reason(header)
        read_recipe(header.metadata)
        expected_size([file_shapes(file).layers])
        lora = read_lora(file, weights if with_weights else None)
    except ZipLoraError as error:
        if file.name not in str(error):
            raise ValueError(f"the sentence names no file: {error}") from error
        return type(error).__name__
    for layer in lora.layers.values():
        up = layer.up.float() * layer.scaling
        if not bool(torch.isfinite(up).all() and torch.isfinite(layer.down).all()):
            raise ValueError(f"layer {layer.name} is not finite")
    for name, extra in lora.extras.items():
        if not bool(torch.isfinite(extra).all()):
            raise ValueError(f"{name} is not finite")
    return "read"


def run(folder: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """(how the files ended, what was wrong): file i of a seed is always the same."""
    ends, problems = Counter[str](), []
    for index, sample in enumerate(SAMPLES.values()):  # what torch loads once is no file's fault
        file = folder / f"{index}.safetensors"
        file.write_bytes(save(named(module_of(sample), sample.parts)))
        read(file, True)
        file.unlink()
    for index in range(count):
        chance = Random(f"{seed}/{index}")
        torch.manual_seed(chance.randrange(1 << 30))
        name, content = base(chance)
        for change in chance.choices(CHANGES, k=chance.choice((0, 1, 1, 1, 1, 2))):
            if len(content) > 16 and content[8:9] == b"{":
                try:
                    content = change(content, chance)
                except (ValueError, AttributeError, TypeError, LookupError, RecursionError):
                    # It is damaged already, so that its JSON can't be changed.
                    content = flipped(content, chance)
        file, beside = folder / name, folder / SIDECAR
        file.write_bytes(content)
        beside.unlink(missing_ok=True)
        if chance.random() < 0.3:
            beside.write_text(json.dumps(config(chance)), encoding="utf-8")
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            ends[read(file, chance.random() < 0.5)] += 1
        except Exception:  # noqa: BLE001 - what is looked for
            problems.append(f"file {index}: {traceback.format_exc(limit=-4)}")
        seconds = time.process_time() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if seconds > SECONDS:
            problems.append(f"file {index}: {seconds:.2f} s for {len(content)} bytes")
        if index and grown > TIMES * len(content) + ALLOWANCE:
            problems.append(f"file {index}: {grown >> 20} MB for {len(content)} bytes")
        file.unlink()
    return ends, problems


def main() -> int:
    """Fuzz; 1 when something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ends, problems = run(Path(folder), arguments.files, arguments.seed)
    print("\n".join(problems))
    print(json.dumps(dict(sorted(ends.items()))))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
