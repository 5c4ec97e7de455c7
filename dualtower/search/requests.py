"""What a person asks of a search, in words or with an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

__all__ = ["SHARPER", "QueryImage", "SearchRequest", "Target", "image_digest"]

Target = Literal["image", "text", "product"]
SHARPER = 3
"""Times the model's size that a large image is decoded to before it is resized, as Pillow's `reducing_gap` of 3."""


@dataclass(frozen=True, eq=False)
class QueryImage:
    """An image to search with, decoded.

    Attributes:
        image: At the size that the model sees; None where a page's cursor has the vector already.
        digest: Digest of the encoded bytes.
    """

    image: Image.Image | None
    digest: str


@dataclass(frozen=True)
class SearchRequest:
    """What a person asks for.

    Attributes:
        text: Words; may be empty.
        image: Encoded image, or one that `SearchEngine.decode_query_image` has opened; None for none.
        negative_texts: Words to lead away from.
        text_weight: Weight of the words.
        image_weight: Weight of the image.
        negative_weight: Weight of each of the negative texts.
        target: Vectors to compare with. ``image`` finds images, ``text`` titles; ``product``, in catalogs that
            have fused vectors, finds products like one that has this title and image. None is ``image`` where the
            catalog has such vectors, else ``text``.
        where: A filter.
        limit: Hits per page.
        cursor: Cursor of the page before; then text and image may be left out.
        group_by_product: One hit per product.
    """

    text: str = ""
    image: bytes | QueryImage | None = None
    negative_texts: tuple[str, ...] = ()
    text_weight: float = 1.0
    image_weight: float = 1.0
    negative_weight: float = 0.5
    target: Target | None = None
    where: str = ""
    limit: int = 10
    cursor: str | None = None
    group_by_product: bool = True

    def compared_with(self, vector_names: Sequence[str]) -> str:
        """What vectors of a catalog the request is compared with.

        Args:
            vector_names: Kinds of vectors that the catalog has.
        """
        return self.target or vector_names[0]

    def key(self) -> str:
        """A hash of what its vector is made from; empty where there is nothing."""
        if not self.text.strip() and self.image is None and not self.negative_texts:
            return ""
        image = image_digest(self.image) if isinstance(self.image, bytes) else self.image and self.image.digest
        return repr((self.text, image, self.negative_texts, self.text_weight, self.image_weight, self.negative_weight))


def image_digest(content: bytes) -> str:
    """Tells encoded images apart."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()
