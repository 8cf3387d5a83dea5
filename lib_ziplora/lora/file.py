"""LoRA files: what other rooms use to read, judge and write them."""

from __future__ import annotations

from .header import LoraHeader, inspect_header, require_sdxl, unsupported_reason
from .metadata import merged_metadata, read_recipe
from .placing import copied, mapped
from .reading import read_lora, read_loras
from .shapes import FileShapes, expected_size, file_shapes, output_size
from .writing import check_output, write_lora

__all__ = [
    "FileShapes",
    "LoraHeader",
    "check_output",
    "copied",
    "expected_size",
    "file_shapes",
    "inspect_header",
    "mapped",
    "merged_metadata",
    "output_size",
    "read_lora",
    "read_loras",
    "read_recipe",
    "require_sdxl",
    "unsupported_reason",
    "write_lora",
]
