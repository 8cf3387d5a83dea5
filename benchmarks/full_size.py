"""Learnt merges on a full-size SDXL of random weights, on the CPU: ``python -m benchmarks.full_size``.

Nothing is downloaded: checkpoint (a diffusers folder and a single file, 14 GB of disk) and LoRAs are made from seeds
and SDXL's configuration. Every merge runs in a process of its own, which tells its peak of memory and its processor
seconds. A dozen layers of the file are checked by dense matrices in numpy, from the tensors as they stand in the files.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from benchmarks.cost import MetaDenoiser, chosen_layers
from benchmarks.minixl.checkpoint import state_dict
from lib_ziplora.config import LoraInput, MergeRequest, MergeSettings
from lib_ziplora.hosts._diffusers.sdxl_config import sdxl_folder
from lib_ziplora.hosts._diffusers.text import text_modules
from lib_ziplora.hosts.standalone import StandaloneHost
from lib_ziplora.lora.io.sidecar import sidecar_path
from lib_ziplora.lora.io.write import write_lora
from lib_ziplora.lora.layer import LoraLayer
from lib_ziplora.pipeline.merge import run
from lib_ziplora.report.saved import read_saved

LAYERS, RANK, SIZE = 12, 16, 64
RUNS = (("instant", "folder"), ("ziplora", "file"), ("balanced", "folder"))


def parts_of(config: Path) -> dict[str, type]:
    """SDXL's models by the name of their folder."""
    import diffusers
    import transformers

    index = json.loads((config / "model_index.json").read_text(encoding="utf-8"))
    found = {
        name: getattr({"diffusers": diffusers, "transformers": transformers}[kind[0]], kind[1])
        for name, kind in index.items()
        if isinstance(kind, list)
    }
    return {name: kind for name, kind in found.items() if issubclass(kind, nn.Module)}


def make_checkpoint(folder: Path) -> None:
    """A diffusers folder with random weights in fp16, one model after the other, and the same as one file."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with sdxl_folder() as config:
        for name, kind in parts_of(config).items():
            if hasattr(kind, "load_config"):
                model = kind.from_config(kind.load_config(config / name))
            else:
                model = kind(kind.config_class.from_pretrained(config / name))
            model.save_pretrained(folder / name)
            del model
            gc.collect()
        for path in config.rglob("*.*"):
            target = folder / path.relative_to(config)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    torch.set_default_dtype(torch.float32)
    save_file(state_dict(folder), folder.with_suffix(".safetensors"))


def make_lora(path: Path, seed: int) -> None:
    """A LoRA as sd-scripts trains it: transformer blocks and both text encoders, random."""
    torch.manual_seed(seed)
    with sdxl_folder() as config, torch.device("meta"):
        kinds = {name: kind for name, kind in parts_of(config).items() if name.startswith("text")}
        texts = [kind(kind.config_class.from_pretrained(config / name)) for name, kind in kinds.items()]
    text = {name: m for name, m in text_modules(texts).items() if "text_projection" not in name}
    layers = {}
    for name, module in {**chosen_layers(MetaDenoiser().unet, "kohya"), **text}.items():
        out, *columns = module.weight.shape
        down = (torch.randn(RANK, *columns) / columns[0] ** 0.5).half()
        layers[name] = LoraLayer(name, down, (torch.randn(out, RANK) * 0.02).half(), float(RANK))
    write_lora(path, layers)


def dense(file: Any, name: str) -> np.ndarray:
    """A layer's delta weight from a file's own tensors, in fp64."""
    up, down = (file.get_tensor(f"{name}.lora_{part}.weight").double().numpy() for part in ("up", "down"))
    scaling = float(file.get_tensor(f"{name}.alpha")) / len(down)
    return scaling * up.reshape(len(up), -1) @ down.reshape(len(down), -1)


def inexact(output: Path, loras: Sequence[Path], vectors: Sequence[Mapping[str, Any]]) -> float:
    """Largest relative error of a dozen layers of a merge against sum_a dW_a diag(m_a), its file being fp16."""
    names = sorted(vectors[0])[:: len(vectors[0]) // LAYERS][:LAYERS]
    with safe_open(output, "pt") as merged, safe_open(loras[0], "pt") as a, safe_open(loras[1], "pt") as b:
        errors = []
        for name in names:
            wanted = sum(
                dense(file, name) * vector[name].double().numpy()
                for file, vector in zip((a, b), vectors, strict=True)
            )
            errors.append(np.linalg.norm(dense(merged, name) - wanted) / np.linalg.norm(wanted))
    return float(max(errors))


def merge(folder: Path, method: str, kind: str, dtype: str) -> dict[str, Any]:
    """One merge in this process, and what it took."""
    checkpoint = folder / ("sdxl" if kind == "folder" else "sdxl.safetensors")
    loras = [folder / f"{name}.safetensors" for name in ("subject", "style")]
    output = folder / f"{method}-{kind}.safetensors"
    short = {"steps": 2, "trajectories": 1, "sampling_steps": 2, "guidance_scale": 1.0}
    settings = MergeSettings(
        method=method,
        width=SIZE,
        height=SIZE,
        auto_balance=method == "balanced",
        combined_prompt="a sks dog in szn style",
        **short,
    )
    chosen = (
        LoraInput(str(loras[0]), "a sks dog", role="subject"),
        LoraInput(str(loras[1]), "a cat in szn style", role="style"),
    )
    request = MergeRequest(chosen, str(output), settings=settings, overwrite=True)
    host = StandaloneHost(checkpoint, device="cpu", dtype=dtype)
    report = run(request, host, lambda event: print(event.step, event.text, file=sys.stderr, flush=True))
    side = read_saved(sidecar_path(output))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "method": method,
        "checkpoint": kind,
        "dtype": dtype,
        "updates": report.learnt.steps,
        "heldout": [report.learnt.heldout_loss_start, report.learnt.heldout_loss_end],
        "inexact": inexact(output, loras, side.coefficients),
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "seconds": report.seconds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.full_size", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("out/full-size"))
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument(
        "--one", nargs=2, metavar=("METHOD", "KIND"), help="one merge in this process, as JSON"
    )
    parser.add_argument("--prepare", action="store_true", help="only make the files")
    args = parser.parse_args(arguments)
    if args.prepare:
        make_checkpoint(args.folder / "sdxl")
        for seed, name in enumerate(("subject", "style")):
            make_lora(args.folder / f"{name}.safetensors", seed)
        return
    if args.one:
        print(json.dumps(merge(args.folder, *args.one, args.dtype)))
        return
    command = [sys.executable, "-m", "benchmarks.full_size", "--folder", str(args.folder)]
    if not (args.folder / "style.safetensors").is_file():
        subprocess.run([*command, "--prepare"], check=True)
    print("| merge | checkpoint | updates | held-out error | inexact | peak, GB | processor seconds |")
    print("|---|---|---:|---:|---:|---:|---:|", flush=True)
    for method, kind in RUNS:
        one = [*command, "--dtype", args.dtype, "--one", method, kind]
        row = json.loads(subprocess.run(one, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        start, end = row["heldout"]
        what = f"`{method}` | {kind}, {args.dtype} | {row['updates']} | {start:.3f} → {end:.3f}"
        took = f"{row['inexact']:.1e} | {row['peak_gb']:.1f} | {row['cpu_seconds']:.0f}"
        print(f"| {what} | {took} |", flush=True)


if __name__ == "__main__":
    main()
