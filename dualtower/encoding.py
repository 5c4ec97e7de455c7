"""From lists of texts and pictures to arrays of embeddings, in batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dualtower.data.attributes import attribute_values
from dualtower.data.images import open_image, to_pixels
from dualtower.errors import ConfigError, DataError
from dualtower.types import Batch

if TYPE_CHECKING:
    from PIL import Image

    from dualtower.model import DualTower

__all__ = ["compose", "encode_image", "encode_product", "encode_text", "evaluation_mode"]


def encode_text(model: DualTower, texts: Sequence[str], *, batch_size: int, progress: bool, bf16: bool) -> np.ndarray:
    """See `DualTower.encode_text`."""
    if isinstance(texts, str):
        raise DataError(f"encode_text takes a list of texts; type encode_text([{texts[:40]!r}])")
    if model.tokenizer is None:
        raise ConfigError("this model has no tokenizer; build it with DualTower(config, tokenizer)")
    for position, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"encode_text: text {position} is {text!r}; every text must be a non-empty string")
    collator = model.collator()

    def embed(rows: np.ndarray) -> torch.Tensor | None:
        tokens = collator.tokens([texts[i] for i in rows])
        return model(_batch(len(rows), tokens=tokens).to(model.device)).text

    by_length = np.argsort([len(text) for text in texts], kind="stable")  # like lengths need little padding
    return _encode(model, embed, by_length, batch_size=batch_size, progress=progress, bf16=bf16, unit="text")


def encode_image(
    model: DualTower,
    images: Sequence[Image.Image | str | Path | bytes],
    *,
    batch_size: int,
    progress: bool,
    bf16: bool,
) -> np.ndarray:
    """See `DualTower.encode_image`."""
    if isinstance(images, str | bytes | Path):
        raise DataError("encode_image takes a list of pictures; type encode_image([picture])")
    settings = model.config.image_settings

    def embed(rows: np.ndarray) -> torch.Tensor | None:
        opened = (open_image(images[i], where="encode_image", row=int(i)) for i in rows)
        pixels = torch.from_numpy(np.stack([to_pixels(image, settings) for image in opened]))
        return model(_batch(len(rows), pixels=pixels).to(model.device)).image

    order = np.arange(len(images))
    return _encode(model, embed, order, batch_size=batch_size, progress=progress, bf16=bf16, unit="image")


def encode_product(
    model: DualTower,
    *,
    text: Sequence[str | None] | None,
    image: Sequence[Any] | None,
    attributes: Sequence[Mapping[str, Any]] | None,
    batch_size: int,
    progress: bool,
) -> np.ndarray:
    """See `DualTower.encode_product`."""
    if model.fusion is None:
        raise ConfigError("this model has no fusion; recipes/train_product_fusion.py --base MODEL trains one")
    lengths = {len(side) for side in (text, image, attributes) if side is not None}
    if len(lengths) != 1:
        raise DataError(f"encode_product: text, image and attributes must be of one length, not {sorted(lengths)}")
    size = lengths.pop()
    texts, images = list(text or [None] * size), list(image or [None] * size)
    present = np.array([[i is not None, bool(t and t.strip())] for i, t in zip(images, texts, strict=True)], bool)
    if not present.any(1).all():
        row = int(np.flatnonzero(~present.any(1))[0])
        raise DataError(f"encode_product: product {row} has neither title nor picture; leave it out")
    collator, settings = model.collator(), model.config.image_settings

    def pixels_of(picture: Any, row: int) -> np.ndarray:
        return to_pixels(open_image(picture, where="encode_product", row=row), settings)

    def embed(rows: np.ndarray) -> torch.Tensor | None:
        sides: dict[str, Any] = {"present": torch.from_numpy(present[rows])}
        if image is not None:  # of a row without a side something stands there, and is never read
            blank = np.zeros((3, settings.height, settings.width), np.uint8)
            sides["pixels"] = torch.from_numpy(
                np.stack([blank if images[i] is None else pixels_of(images[i], int(i)) for i in rows])
            )
        if text is not None:
            sides["tokens"] = collator.tokens([texts[i] or "-" for i in rows])
        if collator.attributes:
            sides["attributes"] = attribute_values(
                collator.attributes, [attributes[i] if attributes else {} for i in rows]
            )
        batch = _batch(len(rows), **sides).to(model.device)
        return model.fuse(model(batch), batch)[0]

    order = np.arange(size)
    return _encode(model, embed, order, batch_size=batch_size, progress=progress, bf16=False, unit="product")


def compose(model: DualTower, terms: Sequence[tuple[Any, float]]) -> np.ndarray:
    """See `DualTower.compose`."""
    if isinstance(terms, str) or not terms:
        raise DataError("compose takes (text or picture, weight) pairs, such as [('red dress', 1.0), (picture, 0.6)]")
    for position, term in enumerate(terms):
        if isinstance(term, str) or len(term) != 2 or not np.isfinite(float(term[1])):
            raise DataError(f"compose: term {position} is {term!r}; give (text or picture, finite weight)")
    weights = np.array([weight for _, weight in terms], np.float32)
    parts = np.empty((len(terms), model.config.embed_dim), np.float32)
    is_text = np.array([isinstance(term, str) for term, _ in terms])
    if is_text.any():
        parts[is_text] = model.encode_text([term for term, _ in terms if isinstance(term, str)])
    if not is_text.all():
        parts[~is_text] = model.encode_image([term for term, _ in terms if not isinstance(term, str)])
    query = weights @ parts
    if model.config.similarity != "cosine":
        return query
    length = float(np.linalg.norm(query))
    if length < 1e-6 * float(np.abs(weights).sum() or 1):
        raise DataError(f"compose: the terms cancel out (weights {weights.tolist()}); change a weight")
    return query / np.float32(length)


def _encode(
    model: DualTower,
    embed: Callable[[np.ndarray], torch.Tensor | None],
    order: np.ndarray,
    *,
    batch_size: int,
    progress: bool,
    bf16: bool,
    unit: str,
) -> np.ndarray:
    """Embed rows in the given order, and return them in their own."""
    from tqdm import tqdm

    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    embeddings = np.empty((len(order), model.config.embed_dim), dtype=np.float32)
    with (
        evaluation_mode(model),
        torch.autocast(model.device.type, torch.bfloat16, enabled=bf16),
        tqdm(total=len(order), disable=not progress, unit=unit) as bar,
    ):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            embedded = embed(rows)
            assert embedded is not None
            embeddings[rows] = embedded.float().cpu().numpy()
            bar.update(len(rows))
    return embeddings


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """No dropout, no batch statistics, no gradients; afterwards every module trains or rests as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _batch(size: int, **sides: Any) -> Batch:
    """A batch without products: nothing here asks what is a positive of what."""
    return Batch(ids=tuple(map(str, range(size))), products=torch.arange(size), **sides)
