"""Images that people search with: decoded one at a time, beside the requests, to the size that the model sees."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

from PIL import Image

from dualtower.search.engine import QueryImage
from dualtower.serving.batching import Background

__all__ = ["Decoder"]

QUICK = 2_000_000
"""Pixels of an image that is decoded at once, in some tens of milliseconds."""
JPEG_GAIN = 8
"""How many times less a JPEG's pixels count: it is scaled while it is decoded."""


class Decoder:
    """Decodes small images in one thread and large ones in another, which stands back for all else.

    A file of some kilobytes can hold millions of pixels. So many of these as one image may have are in memory at a
    time, and whoever sends a small image does not wait for those of others.

    Args:
        waiting: Small images that may wait.
        large: Large images that may wait.
    """

    def __init__(self, *, waiting: int = 256, large: int = 16) -> None:
        self._quick = Background(waiting=waiting, low_priority=False)
        self._slow = Background(waiting=large)

    async def decode(self, content: bytes, decode_query_image: Callable[[bytes], QueryImage]) -> QueryImage:
        """Decode an image.

        Args:
            content: Encoded.
            decode_query_image: Decodes it.

        Raises:
            QueueFull: Too many wait already.
            BrokenImage: It is none, or too large.
        """
        opened = await self._quick.run(partial(_if_quick, content, decode_query_image))
        return opened if opened is not None else await self._slow.run(partial(decode_query_image, content))

    def close(self) -> None:
        """Stop after what is under way."""
        self._quick.close()
        self._slow.close()


def _if_quick(content: bytes, decode_query_image: Callable[[bytes], QueryImage]) -> QueryImage | None:
    """The image, unless by its header it is too large for that."""
    try:
        with Image.open(io.BytesIO(content)) as header:
            pixels = header.width * header.height / (JPEG_GAIN if header.format in ("JPEG", "MPO") else 1)
    except Exception:  # whoever decodes it says what is wrong
        pixels = 0
    return decode_query_image(content) if pixels <= QUICK else None
