"""The re-ranker over many pairs, in bounded memory: towers see every text and image of a block once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dualtower.data.transforms.images import open_image, to_pixels
from dualtower.errors import ConfigError
from dualtower.models.encoding import evaluation_mode
from dualtower.models.heads.reranker import Reranker, TokenStates
from dualtower.sharding import combine, shard
from dualtower.types import Batch, Embeddings, Features

if TYPE_CHECKING:
    from dualtower.models.dual_tower import DualTower

__all__ = ["features_to_rerank", "image_states", "reranker_of", "score_pairs", "text_states"]


def score_pairs(
    model: DualTower,
    texts: Sequence[str],
    images: Sequence[Any],
    pairs: np.ndarray,
    *,
    block: tuple[int, int] = (2048, 1024),
    at_once: int = 2048,
    progress: bool = False,
) -> np.ndarray:
    """The re-ranker's corrections for chosen pairs.

    Pairs are visited texts first, images within, so that only the tokens of one block of texts and of one block of
    images are held. An image is decoded and embedded once per block of texts that asks for it.

    Args:
        model: With a re-ranker.
        texts: T texts.
        images: I images, as `DualTower.encode_image` takes them.
        pairs: Text and image of each pair, int ``[P, 2]``.
        block: Texts and images whose tokens are held at a time; it has no influence on the result.
        at_once: Pairs per pass of the re-ranker.
        progress: Show a progress bar.

    Returns:
        float32 ``[P]``, to be added to ``scale * similarity``.

    Raises:
        ConfigError: The model has no re-ranker.
        BrokenImage: An image cannot be decoded.
    """
    from tqdm import tqdm

    reranker = reranker_of(model)
    scores = np.zeros(len(pairs), np.float32)
    blocks = shard(
        [
            (number, of_texts, of_images)
            for number, of_texts in enumerate(_blocks(pairs[:, 0], block[0]))
            for of_images in _blocks(pairs[of_texts, 1], block[1])
        ]
    )
    total, held = sum(len(of_images) for _, _, of_images in blocks), -1
    with evaluation_mode(model), tqdm(total=total, disable=not progress, unit="pair") as bar:
        for number, of_texts, of_images in blocks:
            if number != held:
                read, text_of = np.unique(pairs[of_texts, 0], return_inverse=True)
                all_read, held = text_states(model, [texts[i] for i in read]), number
            seen, image_of = np.unique(pairs[of_texts[of_images], 1], return_inverse=True)
            all_seen = image_states(model, [(int(i), images[i]) for i in seen])
            for start in range(0, len(of_images), at_once):
                some = slice(start, start + at_once)
                text = all_read.take(torch.from_numpy(text_of[of_images[some]]).to(model.device))
                image = all_seen.take(torch.from_numpy(image_of[some]).to(model.device))
                match = reranker.weight * reranker(text, image)
                scores[of_texts[of_images[some]]] = match.float().cpu().numpy()
            bar.update(len(of_images))
    combine(scores)
    return scores


def reranker_of(model: DualTower) -> Reranker:
    """The model's re-ranker.

    Raises:
        ConfigError: It has none.
    """
    if model.reranker is None:
        raise ConfigError("this model has no re-ranker; recipes/train_reranker.py --base MODEL trains one")
    return model.reranker


def features_to_rerank(
    model: DualTower, batch: Batch, seen: Embeddings | None = None
) -> tuple[Features | None, Features | None]:
    """Features of the texts and of the images that the re-ranker reads: of its own towers, or of the model's.

    Args:
        model: With a re-ranker.
        batch: Either side may be absent.
        seen: What the model made of the batch, so that its towers need not look twice.

    Raises:
        ConfigError: The model has no re-ranker.
    """
    reranker, text, image = reranker_of(model), None, None
    if batch.tokens is not None:
        known = seen.text_features if seen and reranker.text_tower is None else None
        text = known or model.text_features(batch.tokens, reranker.text_tower)
    if batch.pixels is not None:
        known = seen.image_features if seen and reranker.image_tower is None else None
        image = known or model.image_features(batch.pixels, reranker.image_tower)
    return text, image


def _blocks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Places of pairs, in blocks that ask for at most `size` different rows each, rows ascending."""
    different, number = np.unique(rows, return_inverse=True)
    order = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[order], np.arange(size, len(different), size))
    return np.split(order, ends)


def text_states(model: DualTower, texts: Sequence[str], batch_size: int = 256) -> TokenStates:
    """What the re-ranker needs of some texts, padded to the longest of them."""
    reranker, collator, parts = reranker_of(model), model.collator(), []
    for start in range(0, len(texts), batch_size):
        some = texts[start : start + batch_size]
        batch = _batch(len(some), tokens=collator.tokens(some)).to(model.device)
        features, _ = features_to_rerank(model, batch)
        assert features is not None
        parts.append(reranker.text_states(features))
    longest = max(part.tokens.shape[1] for part in parts)
    padding = [longest - part.tokens.shape[1] for part in parts]
    pad = torch.nn.functional.pad
    return TokenStates(
        torch.cat([pad(part.tokens, (0, 0, 0, p)) for part, p in zip(parts, padding, strict=True)]),
        torch.cat([pad(part.mask, (0, p)) for part, p in zip(parts, padding, strict=True) if part.mask is not None]),
        torch.cat([part.embedding for part in parts]),
    )


def image_states(model: DualTower, images: Sequence[tuple[int, Any]], batch_size: int = 256) -> TokenStates:
    """What the re-ranker needs of some images, given with the numbers that an error names."""
    reranker, settings, parts = reranker_of(model), model.config.image_settings, []
    for start in range(0, len(images), batch_size):
        some = images[start : start + batch_size]
        opened = (open_image(image, where="rerank", row=row) for row, image in some)
        pixels = torch.from_numpy(np.stack([to_pixels(image, settings) for image in opened]))
        _, features = features_to_rerank(model, _batch(len(some), pixels=pixels).to(model.device))
        assert features is not None
        parts.append(reranker.image_states(features))
    return TokenStates(torch.cat([p.tokens for p in parts]), None, torch.cat([p.embedding for p in parts]))


def _batch(size: int, **sides: Any) -> Batch:
    return Batch(ids=tuple(map(str, range(size))), product_codes=torch.arange(size), **sides)
