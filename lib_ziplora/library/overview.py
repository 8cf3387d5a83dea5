"""Contents of a LoRA file, and the overlap of two."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..lora.algebra import column_overlap, pair
from ..lora.io.inspect import inspect_header
from ..lora.io.read import read_lora
from ..lora.lowrank import total_error

METADATA_WIDTH = 160


def describe_file(path: Path, *, layers: bool = False) -> dict[str, Any]:
    """A file as plain data: base, dialect, ranks, metadata; each layer too when asked.

    Raises:
        LoraFileError: not a whole safetensors file.
        UnsupportedLoraError: the layers are asked for and the file is for another model.
    """
    header = inspect_header(path)
    summary: dict[str, Any] = {
        "name": header.name,
        "file": str(path),
        "bytes": header.size,
        "base": header.base,
        "family": header.family,
        "dialect": header.dialect,
        "ranks": list(header.ranks),
        "unet_layers": header.unet_layers,
        "text_layers": header.text_layers,
        "unknown": list(header.unknown),
        "metadata": dict(header.metadata),
    }
    if layers:
        lora = read_lora(path)
        summary["layers"] = [
            {"name": layer.name, "rank": layer.rank, "alpha": layer.alpha, "shape": list(layer.weight_shape)}
            for layer in lora.layers.values()
        ]
        summary["approximations"] = [asdict(item) for item in lora.approximations]
        summary["approximation_error"] = total_error(lora.approximations)
        summary["extras"] = list(lora.extras)
    return summary


def describe_pair(first: Path, second: Path) -> dict[str, Any]:
    """Both files, and for each common layer the mean |cosine| of the delta weights' columns.

    Raises:
        ZipLoraError: a file can't be read, is for another model, or their shapes differ.
    """
    a, b = read_lora(first), read_lora(second)
    pairing = pair(a, b)
    overlap = {name: column_overlap(a.layers[name], b.layers[name]) for name in pairing.common}
    return {
        "files": [describe_file(first), describe_file(second)],
        "common_layers": len(pairing.common),
        "first_only": list(pairing.single[0]),
        "second_only": list(pairing.single[1]),
        "mean_overlap": sum(overlap.values()) / len(overlap) if overlap else 0.0,
        "overlap": overlap,
    }


def file_text(summary: dict[str, Any]) -> str:
    """``describe_file`` for people."""
    ranks = ", ".join(map(str, summary["ranks"])) or "none"
    lines = [
        summary["file"],
        f"  base      {summary['base']}",
        f"  family    {summary['family']} ({summary['dialect']} names)",
        f"  layers    {summary['unet_layers']} UNet, {summary['text_layers']} text encoder",
        f"  rank      {ranks}",
        f"  size      {summary['bytes'] / 1e6:.1f} MB",
    ]
    if summary["unknown"]:
        lines.append(
            f"  unknown   {len(summary['unknown'])} tensors, the first is {_short(summary['unknown'][0])}"
        )
    lines += [
        f"  metadata  {_short(key)} = {_short(value)}" for key, value in sorted(summary["metadata"].items())
    ]
    if summary.get("approximations"):
        lines.append(
            f"  converted {len(summary['approximations'])} layers to low rank, "
            f"error {100 * summary['approximation_error']:.2f} % in all"
        )
    errors = {item["layer"]: item for item in summary.get("approximations", ())}
    for layer in summary.get("layers", ()):
        shape, made = "x".join(map(str, layer["shape"])), errors.get(layer["name"])
        origin = f"  of {made['family']}, error {100 * made['error']:.2f} %" if made else ""
        lines.append(f"  {layer['name']}  {shape}  rank {layer['rank']}  alpha {layer['alpha']:g}{origin}")
    lines += [f"  {name}" for name in summary.get("extras", ())]
    return "\n".join(lines)


def pair_text(summary: dict[str, Any]) -> str:
    """``describe_pair`` for people, the layers that overlap most first."""
    ordered = sorted(summary["overlap"].items(), key=lambda item: -item[1])
    return "\n".join(
        [
            *(file_text(one) for one in summary["files"]),
            f"common layers  {summary['common_layers']}",
            f"only in one    {len(summary['first_only'])} in the first, {len(summary['second_only'])} in the second",
            f"mean overlap   {summary['mean_overlap']:.3f}   (|cosine| of the same columns: 0 apart, 1 the same)",
            *(f"  {value:.3f}  {name}" for name, value in ordered),
        ]
    )


def _short(text: str) -> str:
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return line if len(line) <= METADATA_WIDTH else f"{line[:METADATA_WIDTH]}... ({len(text)} characters)"
