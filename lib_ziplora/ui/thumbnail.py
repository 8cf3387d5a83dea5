"""The preview picture of a LoRA, small enough to stand in the page itself."""

from __future__ import annotations

import base64
import io
import logging
from functools import lru_cache
from pathlib import Path

from PIL import Image

log = logging.getLogger(__name__)

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "gif")
"""In the WebUI's order."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""The only decoders that a preview picture is given to."""
SIDE = 192
"""Pixels; it is shown at half of it, for screens of a high density."""
SMALL_SIDE = 72
"""The same in the pickers' lists."""
LARGEST_FILE = 64_000_000
MOST_PIXELS = 64_000_000
QUALITY = 80


def preview_of(lora: Path) -> Path | None:
    """The picture that the WebUI shows on a LoRA's card: ``name.png``, ``name.preview.png``, ...

    Only a file in the LoRA's own folder counts, not a link to a picture elsewhere.
    """
    folder = lora.parent.resolve()
    for extension in EXTENSIONS:
        for ending in (extension, f"preview.{extension}"):
            picture = lora.with_name(f"{lora.stem}.{ending}")
            if picture.is_file() and picture.resolve().parent == folder:
                return picture
    return None


def thumbnail(lora: Path, side: int = SIDE) -> str:
    """A ``data:`` URL of a LoRA's preview picture, ``side`` pixels at most, or "" when it has none that can be read."""
    try:
        picture = preview_of(lora)
        if picture is None:
            return ""
        stat = picture.stat()
        return _encoded(picture, stat.st_mtime_ns, stat.st_size, side)
    except OSError as error:
        log.warning("The preview picture of %s can't be read (%s).", lora.name, error)
        return ""


@lru_cache(maxsize=1024)
def _encoded(picture: Path, modified: int, size: int, side: int) -> str:
    """The thumbnail of a picture, made again only when the file has changed."""
    if size > LARGEST_FILE:
        return ""
    try:
        with Image.open(picture, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                return ""
            image.draft("RGB", (side, side))
            small = image.convert("RGB")
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        log.warning("The preview picture %s can't be read (%s).", picture.name, error)
        return ""
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
