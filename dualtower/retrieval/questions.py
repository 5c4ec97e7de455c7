"""What a person asks of a search, in words or with a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

__all__ = ["SHARPER", "Against", "QueryPicture", "Question", "picture_digest"]

Against = Literal["image", "text", "product"]
SHARPER = 3
"""Times the model's size that a large picture is decoded to before it is resized, as Pillow's `reducing_gap` of 3."""


@dataclass(frozen=True, eq=False)
class QueryPicture:
    """A picture to search with, decoded.

    Attributes:
        image: At the size that the model sees; None where a page's cursor has the vector already.
        digest: Of the encoded bytes.
    """

    image: Image.Image | None
    digest: str


@dataclass(frozen=True)
class Question:
    """What a person asks for.

    Attributes:
        text: Words; may be empty.
        image: Encoded picture, or one that `Finder.open_picture` has opened; None for none.
        unwanted: Words to lead away from.
        text_weight: Of the words.
        image_weight: Of the picture.
        unwanted_weight: Of each of the unwanted words.
        against: Vectors to compare with. ``image`` finds pictures, ``text`` titles; ``product``, in catalogues that
            have fused vectors, finds products like one that has this title and picture. None is ``image`` where the
            catalogue has such vectors, else ``text``.
        where: A filter.
        limit: Hits per page.
        cursor: Of the page before; then text and picture may be left out.
        grouped: One hit per product.
    """

    text: str = ""
    image: bytes | QueryPicture | None = None
    unwanted: tuple[str, ...] = ()
    text_weight: float = 1.0
    image_weight: float = 1.0
    unwanted_weight: float = 0.5
    against: Against | None = None
    where: str = ""
    limit: int = 10
    cursor: str | None = None
    grouped: bool = True

    def compared_with(self, kinds: Sequence[str]) -> str:
        """What vectors of a catalogue the question is compared with.

        Args:
            kinds: Kinds of vectors that the catalogue has.
        """
        return self.against or kinds[0]

    def key(self) -> str:
        """A hash of what its vector is made from; empty where there is nothing."""
        if not self.text.strip() and self.image is None and not self.unwanted:
            return ""
        picture = picture_digest(self.image) if isinstance(self.image, bytes) else self.image and self.image.digest
        return repr((self.text, picture, self.unwanted, self.text_weight, self.image_weight, self.unwanted_weight))


def picture_digest(content: bytes) -> str:
    """Tells encoded pictures apart."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()
