"""The values that flow between rooms: a product becomes part of a batch, a batch becomes embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dualtower.errors import RowError

if TYPE_CHECKING:  # a catalog on disk is opened, changed and verified without torch, in a fraction of the time
    import torch
    from torch import Tensor

__all__ = ["AttributeValues", "Batch", "Embeddings", "Features", "Hit", "Item", "product_code"]


def product_code(product_id: str) -> int:
    """Map a product id to a 63-bit integer that is the same in every process and every run.

    Batches carry codes instead of strings, so that "same product" is one tensor comparison, also
    between rows that come from different ranks. With 63 bits, ten million products collide with
    probability 5e-6.
    """
    return int.from_bytes(hashlib.blake2b(product_id.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Item:
    """One checked row of a catalog; the image stays undecoded until a collator needs it.

    Attributes:
        id: Unique row id; it travels with the row to the hit.
        product_id: What the row shows. Rows with equal `product_id` are positives of each other.
        texts: The captions of the row (never empty strings); none for a row of images alone.
        image: Encoded bytes or a path, or None for a text-only row.
        attributes: The card's attribute columns.
        more_images: Further images of the row, best first.
        image_number: Which of the row's images `image` is, from 0: training draws one of them for each visit.
        partner: Another item that shows the same, whose image is the row's second view; None where none is asked for.
    """

    id: str
    product_id: str
    texts: tuple[str, ...]
    image: bytes | Path | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    more_images: tuple[bytes | Path, ...] = ()
    image_number: int = 0
    partner: Item | None = None

    @property
    def images(self) -> tuple[bytes | Path, ...]:
        """All images of the row; empty for a text-only row."""
        return () if self.image is None else (self.image, *self.more_images)


class AttributeValues(NamedTuple):
    """Attributes of a batch as a model reads them.

    Attributes:
        codes: Categories, int64 ``[B, C]``; 0 is missing or unknown.
        numbers: Quantities, normalized, float32 ``[B, Q]``; NaN is missing.
    """

    codes: Tensor
    numbers: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """What the model sees. Either side may be absent.

    Attributes:
        ids: Row ids, length B.
        product_codes: Product codes, int64 ``[B]`` (see `product_code`).
        pixels: RGB images ``[B, 3, H, W]``, uint8 or, after augmentation, float32 in 0..255; the tower normalizes.
        tokens: ``input_ids`` and ``attention_mask``, int64 ``[B, L]``, padded to one length.
        attributes: Attributes of the products, where the model reads them.
        labels: Classes that heads learn, int64 ``[B, H]``; -1 is unknown.
        present: Which rows have an image and which a text, bool ``[B, 2]``; None where all have both. What stands in
            `pixels` and `tokens` of a row without it is never read.
        broken: Errors of rows whose image could not be decoded, and which other rows of the batch stand in for.
        more_views: Further views of the same rows, each like `pixels`, where an objective wants them: as they are read,
            other images; after augmentation, of those or of the same image.
        more_tokens: Further views of the same rows' texts, each like `tokens` but of a length of its own.
        presets: Which augmentation each row's images get, int64 ``[B]``; None is the same for all.
    """

    ids: tuple[str, ...]
    product_codes: Tensor
    pixels: Tensor | None = None
    tokens: Mapping[str, Tensor] | None = None
    attributes: AttributeValues | None = None
    labels: Tensor | None = None
    present: Tensor | None = None
    broken: tuple[RowError, ...] = ()
    more_views: tuple[Tensor, ...] = ()
    more_tokens: tuple[Mapping[str, Tensor], ...] = ()
    presets: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on `device`."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from where copies to a GPU run beside all else; loaders call this."""
        return self.each(lambda tensor: tensor.pin_memory())

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `change` of each of its tensors."""

        def changed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return replace(
            self,
            product_codes=change(self.product_codes),
            pixels=changed(self.pixels),
            tokens=self.tokens and _each(self.tokens, change),
            attributes=self.attributes and AttributeValues(*map(change, self.attributes)),
            labels=changed(self.labels),
            present=changed(self.present),
            presets=changed(self.presets),
            more_views=tuple(map(change, self.more_views)),
            more_tokens=tuple(_each(tokens, change) for tokens in self.more_tokens),
        )


def _each(tokens: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: change(tensor) for name, tensor in tokens.items()}


class Features(NamedTuple):
    """Output of a text or image tower.

    Attributes:
        pooled: One vector per row, ``[B, width]``.
        tokens: Text tokens or image patches, ``[B, T, token_width]``. They are views of what the tower
            computes anyway, so they cost nothing where nobody uses them.
        mask: True where a token is real, bool ``[B, T]``; None where all of them are.
        grid: Rows and columns of patches, T together, of which the tokens are read line by line; None for texts.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor | None
    grid: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What the towers make of a batch.

    Attributes:
        image: ``[B, D]`` or None where the batch had no images. L2-normalized under cosine similarity.
        text: ``[B, D]`` or None where the batch had no texts.
        scale: Multiplier of the similarity, scalar fp32 (the exponential of the learned logit scale).
        bias: Added to the logits, scalar fp32 (zero and fixed unless the loss learns one).
        image_features: Features of the image tower, for the heads that look at single patches.
        text_features: Features of the text tower, for the heads that look at single words.
    """

    image: Tensor | None
    text: Tensor | None
    scale: Tensor
    bias: Tensor
    image_features: Features | None = None
    text_features: Features | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """What a search found.

    Attributes:
        id: Id of the row.
        product_id: What the row shows.
        score: Similarity to the query; more is more alike.
        row: Title and attributes.
    """

    id: str
    product_id: str
    score: float
    row: Mapping[str, Any]
