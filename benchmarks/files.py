"""Reading, merging and writing of two large LoRAs against safetensors alone, on the same bytes.

Two LoRAs with every layer of SDXL (UNet and both text encoders) are read, merged as a plain
sum and written (verified, as always); beside it, the two files are loaded and one file of the same total size
is saved with safetensors. Each run is a process of its own, so that its peak memory is its own; the
variants alternate. ``python -m benchmarks.files --json FILE``.

The inputs lie in the page cache unless ``--cold`` drops them before each run. safetensors maps its inputs,
ours are copied into memory, since a mapped file that is cut short ends the process.
safetensors leaves its output in the page cache; ours flushes it to the disk, and so there are two ratios: neither
side flushes (``os.fsync`` does nothing in our run), or both do. Memory is measured in a first round. A timed run
does everything twice and the second time counts: where a virtual machine gives free memory back to its host, to
get it again takes longer than all the rest. On a busy machine look at the processor time too: ours has a second
thread for the checksums.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from lib_ziplora.lora.algebra import merge_layers
from lib_ziplora.lora.io.metadata import merged_metadata
from lib_ziplora.lora.io.read import read_lora
from lib_ziplora.lora.io.write import write_lora
from tests.lora.sdxl_names import Module, canonical, text_modules, unet_modules

INPUTS = ("subject.safetensors", "style.safetensors")
OUTPUT = "merged.safetensors"
# Numbers that every tensor is cut from; the work doesn't depend on them.
POOL = 1 << 23


def modules() -> Iterator[tuple[str, Module]]:
    """Every layer of SDXL that a LoRA can have, by canonical name."""
    yield from ((canonical(module), module) for module in unet_modules())
    for encoder in (1, 2):
        yield from ((canonical(module, f"te{encoder}"), module) for module in text_modules(encoder))


def write_input(path: Path, rank: int, seed: int) -> None:
    """A LoRA of one rank with every layer, fp16, as kohya's trainer lays it out."""
    pool = (0.05 * torch.randn(POOL, generator=torch.Generator().manual_seed(seed))).half()
    tensors = {}
    for i, (name, module) in enumerate(modules()):
        out, *columns = module.shape
        for part, shape in (
            ("lora_down", (rank, *columns)),
            ("lora_up", (out, rank, *[1] * (len(columns) - 1))),
        ):
            start = (i * 4099) % (POOL // 8)
            tensors[f"{name}.{part}.weight"] = (
                pool[start : start + torch.Size(shape).numel()].view(shape).clone()
            )
        tensors[f"{name}.alpha"] = torch.tensor(rank / 2)
    save_file(tensors, path)


def write_inputs(folder: Path, rank: int) -> None:
    for seed, name in enumerate(INPUTS):
        write_input(folder / name, rank, seed)
    print("{}")


def merge(folder: Path) -> None:
    """What a direct merge does with files."""
    loras = [read_lora(folder / name) for name in INPUTS]
    layers = merge_layers([lora.layers for lora in loras], [1.0, 0.8])
    metadata = merged_metadata("merged", layers, loras)
    write_lora(folder / OUTPUT, layers, metadata, overwrite=True)


def merge_unflushed(folder: Path) -> None:
    with mock.patch.object(os, "fsync"):
        merge(folder)


def copy(folder: Path) -> None:
    """The same bytes in and out, by safetensors alone."""
    found = {f"{name}.{key}": t for name in INPUTS for key, t in load_file(folder / name).items()}
    save_file(found, folder / OUTPUT)


def copy_to_disk(folder: Path) -> None:
    copy(folder)
    with (folder / OUTPUT).open("rb") as stream:
        os.fsync(stream.fileno())


VARIANTS: dict[str, Callable[[Path], None]] = {
    "merge": merge_unflushed,
    "safetensors": copy,
    "merge + fsync": merge,
    "safetensors + fsync": copy_to_disk,
}


def resident() -> int:
    """Peak memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processor_time() -> float:
    """Seconds that this process has kept a core busy, in and out of the kernel."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run_variant(name: str, folder: Path, twice: bool, cold: bool) -> None:
    """The child process: one run, its seconds and what its peak memory grew by."""
    (folder / OUTPUT).unlink(missing_ok=True)
    if twice:
        VARIANTS[name](folder)
        (folder / OUTPUT).unlink()
    if cold:
        drop_inputs(folder)
    before, busy, started = resident(), processor_time(), time.perf_counter()
    VARIANTS[name](folder)
    seconds, busy = time.perf_counter() - started, processor_time() - busy
    print(json.dumps({"seconds": seconds, "processor": busy, "peak": resident() - before}))


def drop_inputs(folder: Path) -> None:
    """Take the inputs out of the page cache."""
    for file in INPUTS:
        with (folder / file).open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_child(*arguments: object) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.files", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def one_run(name: str, folder: Path, cold: bool, twice: bool = False) -> dict[str, float]:
    os.sync()
    flags = [flag for flag, wanted in (("--cold", cold), ("--twice", twice)) if wanted]
    return in_child("--variant", name, "--folder", folder, *flags)


def measure(rank: int, repetitions: int, cold: bool) -> dict[str, Any]:
    """The figures of one run: medians over alternating repetitions."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        in_child("--inputs", "--folder", folder, "--rank", rank)
        inputs = sum((folder / name).stat().st_size for name in INPUTS)
        peaks = {name: one_run(name, folder, cold)["peak"] for name in VARIANTS}
        output = (folder / OUTPUT).stat().st_size
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
        for _ in range(repetitions):
            for name, done in runs.items():
                done.append(one_run(name, folder, cold, twice=True))
    seconds = {name: [run["seconds"] for run in done] for name, done in runs.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    busy = {name: statistics.median(run["processor"] for run in done) for name, done in runs.items()}
    pairs = zip(seconds["merge"], seconds["safetensors"], strict=True)
    return {
        "rank": rank,
        "cold": cold,
        "input_bytes": inputs,
        "output_bytes": output,
        "seconds": seconds,
        "median_seconds": medians,
        "median_processor_seconds": busy,
        "ratio": medians["merge"] / medians["safetensors"],
        "ratio_to_disk": medians["merge + fsync"] / medians["safetensors + fsync"],
        "ratio_of_processor_time": busy["merge"] / busy["safetensors"],
        "ratio_of_each_repetition": [ours / theirs for ours, theirs in pairs],
        "peak_bytes": peaks,
        "peak_of_inputs_and_output": peaks["merge"] / (inputs + output),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.files", description=__doc__)
    parser.add_argument("--rank", type=int, default=128, help="of both LoRAs")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--cold", action="store_true", help="drop the inputs from the page cache before each run"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--inputs", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--twice", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        run_variant(arguments.variant, arguments.folder, arguments.twice, arguments.cold)
    elif arguments.inputs:
        write_inputs(arguments.folder, arguments.rank)
    else:
        report(measure(arguments.rank, arguments.repetitions, arguments.cold), arguments.json)


def report(figures: dict[str, Any], file: Path | None) -> None:
    if file:
        file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for name, values in figures["seconds"].items():
        print(f"{name:20} {statistics.median(values):6.2f} s   {' '.join(f'{v:.2f}' for v in values)}")
    print(
        f"{'ratio':20} {figures['ratio']:6.2f}     to the disk {figures['ratio_to_disk']:.2f}, "
        f"of processor time {figures['ratio_of_processor_time']:.2f}"
    )
    print(
        f"{'peak memory':20} {figures['peak_of_inputs_and_output']:6.2f} of "
        f"{(figures['input_bytes'] + figures['output_bytes']) / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
