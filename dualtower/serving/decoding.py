"""Pictures that people search with: decoded one at a time, beside the questions, to the size that the model sees."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

from PIL import Image

from dualtower.retrieval.finder import QueryPicture
from dualtower.serving.batching import Background

__all__ = ["Decoder"]

QUICK = 2_000_000
"""Pixels of a picture that is decoded at once, in some tens of milliseconds."""
JPEG_GAIN = 8
"""How many times less a JPEG's pixels count: it is scaled while it is decoded."""


class Decoder:
    """Decodes small pictures in one thread and large ones in another, which stands back for all else.

    A file of some kilobytes can hold millions of pixels. So many of these as one picture may have are in memory at a
    time, and whoever sends a small picture does not wait for those of others.

    Args:
        waiting: Small pictures that may wait.
        large: Large pictures that may wait.
    """

    def __init__(self, *, waiting: int = 256, large: int = 16) -> None:
        self._quick = Background(waiting=waiting, stands_back=False)
        self._slow = Background(waiting=large)

    async def decode(self, content: bytes, open_picture: Callable[[bytes], QueryPicture]) -> QueryPicture:
        """Decode a picture.

        Args:
            content: Encoded.
            open_picture: Decodes it.

        Raises:
            QueueFull: Too many wait already.
            BrokenImage: It is none, or too large.
        """
        opened = await self._quick.run(partial(_if_quick, content, open_picture))
        return opened if opened is not None else await self._slow.run(partial(open_picture, content))

    def close(self) -> None:
        """Stop after what is under way."""
        self._quick.close()
        self._slow.close()


def _if_quick(content: bytes, open_picture: Callable[[bytes], QueryPicture]) -> QueryPicture | None:
    """The picture, unless by its header it is too large for that."""
    try:
        with Image.open(io.BytesIO(content)) as header:
            pixels = header.width * header.height / (JPEG_GAIN if header.format in ("JPEG", "MPO") else 1)
    except Exception:  # whoever decodes it says what is wrong
        pixels = 0
    return open_picture(content) if pixels <= QUICK else None
