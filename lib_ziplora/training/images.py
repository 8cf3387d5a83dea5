"""Reference images as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image


def check_images(paths: Sequence[str]) -> None:
    """Raise ConfigError for a file that is missing or no image, without decoding it."""
    from PIL import Image

    for path in paths:
        with _errors_in_words(path), Image.open(path) as image:
            image.verify()


def load_images(paths: Sequence[str], width: int, height: int) -> Tensor:
    """Images scaled and cropped around their centre.

    Args:
        paths: image files.
        width: of the result, pixels.
        height: of the result, pixels.

    Returns:
        (n, 3, height, width) in [0, 1], fp32.

    Raises:
        ConfigError: a file is missing or no image; it is named.
    """
    from PIL import Image, ImageOps

    images = []
    for path in paths:
        with _errors_in_words(path), Image.open(path) as image:
            upright = ImageOps.exif_transpose(image) or image
            fitted = ImageOps.fit(_on_white(upright), (width, height), Image.Resampling.LANCZOS)
        images.append(torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255).permute(2, 0, 1))
    return torch.stack(images)


def save_png(image: Image, about: Mapping[str, str], file: Path) -> None:
    """Write a picture as a PNG, whatever the file is called.

    Args:
        image: a PIL image.
        about: its text chunks; ``parameters`` is the infotext.
        file: to be written.

    Raises:
        OSError: it can't be written.
    """
    from PIL import PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    for key, text in about.items():
        chunks.add_text(key, text)
    image.save(file, "png", pnginfo=chunks)


@contextmanager
def _errors_in_words(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow raises every kind of error on damaged files
        raise ConfigError(
            f"The reference image {path} can't be read ({error}). Give a PNG or JPEG file."
        ) from error


def _on_white(image: object) -> object:
    """The image in RGB; where it is transparent, white shows."""
    from PIL import Image

    assert isinstance(image, Image.Image)
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
