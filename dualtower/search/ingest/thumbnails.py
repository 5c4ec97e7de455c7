"""Images to show beside hits: small files of a kind that every browser knows."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from dualtower.data.image_metadata import without_metadata
from dualtower.data.transforms.images import open_image
from dualtower.errors import BrokenImage

__all__ = ["image_bytes", "make_thumbnail", "media_type"]

THUMBNAIL_BYTES = 100_000
"""Larger images are stored as a smaller copy."""
THUMBNAIL_SIDE = 512
THUMBNAIL_PIXELS = 4_000_000
"""Likewise those with more pixels: a file of some kilobytes can hold many millions, which every look would unfold."""


def make_thumbnail(image: bytes | Path, *, most_bytes: int = THUMBNAIL_BYTES, side: int = THUMBNAIL_SIDE) -> bytes:
    """Bytes of a JPEG, PNG or WebP of moderate size to show an image with, without metadata.

    Args:
        image: Encoded image, or its file.
        most_bytes: An image that is larger is made anew.
        side: Longest side of an image that is made anew.
    """
    content = image_bytes(image)
    if len(content) <= most_bytes and media_type(content) is not None and _pixels(content) <= THUMBNAIL_PIXELS:
        bare = without_metadata(content)
        if bare is not None:
            return bare
    thumbnail = open_image(content)
    thumbnail.thumbnail((side, side))
    thumbnail.info.clear()  # or Pillow would write the comment again
    thumbnail.save(buffer := io.BytesIO(), "JPEG", quality=85)
    return buffer.getvalue()


def media_type(content: bytes) -> str | None:
    """Media type of an image that every browser shows, by its first bytes; None for any other."""
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def _pixels(content: bytes) -> int:
    try:
        with Image.open(io.BytesIO(content)) as header:
            return header.width * header.height
    except Exception:  # whoever decodes it says what is wrong
        return 0


def image_bytes(image: bytes | Path) -> bytes:
    """Encoded bytes of an image, which may lie in a file.

    Raises:
        BrokenImage: The file cannot be read.
    """
    if not isinstance(image, Path):
        return image
    try:
        return image.read_bytes()
    except OSError as error:
        raise BrokenImage("index", image, error.strerror or "cannot be read") from error
