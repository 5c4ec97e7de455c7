"""Embeddings of query images as each condition changes them, block by block, so that few images are held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from dualtower.data.transforms.images import open_image, to_pixels
from dualtower.evaluation.robustness.config import RobustnessConfig
from dualtower.evaluation.robustness.corruptions import corrupt, to_image
from dualtower.evaluation.robustness.result import CLEAN, PGD, Condition, Example
from dualtower.evaluation.robustness.retrieval_attack import RetrievalAttack
from dualtower.evaluation.robustness.searches import Search
from dualtower.evaluation.sides import Side
from dualtower.models.dual_tower import DualTower

__all__ = ["ChangedQueries", "embed_changed"]

BLOCK = 256
"""Query images that are decoded and held at a time."""
EXAMPLES = 3
"""Query images that are kept as they were changed, for the report."""


@dataclass(frozen=True, eq=False)
class ChangedQueries:
    """Embeddings of the N images that were drawn.

    Attributes:
        corrupted: Condition, clean ones first -> float32 ``[N, D]``.
        attacked: Search -> condition -> float32 ``[Q, D]`` of its queries.
        examples: The first queries of the first search, as they were changed.
    """

    corrupted: Mapping[Condition, np.ndarray]
    attacked: Mapping[str, Mapping[Condition, np.ndarray]]
    examples: Mapping[int, Example]

    def of(self, name: str, search: Search) -> dict[Condition, np.ndarray]:
        """Condition -> embeddings of the queries of one search, ``[Q, D]``."""
        return {c: vectors[search.queries] for c, vectors in self.corrupted.items()} | dict(self.attacked[name])


def embed_changed(
    model: DualTower,
    drawn: Side,
    searches: Mapping[str, Search],
    config: RobustnessConfig,
    *,
    batch_size: int,
    progress: bool,
) -> ChangedQueries:
    """Change the images as `config` says and embed them.

    Args:
        model: Computes in float32.
        drawn: N images.
        searches: What they search, with embeddings of the galleries.
        config: What is done to the images.
        batch_size: Images embedded at a time, on a CPU 64 at most.
        progress: Show a progress bar.
    """
    count, width = len(drawn.keys), model.config.embed_dim
    corruptions = [Condition(name, strength) for name in config.corruptions for strength in config.strengths]
    attacks = [Condition(PGD, epsilon) for epsilon in config.epsilons]
    corrupted = {c: np.empty((count, width), np.float32) for c in (CLEAN, *corruptions)}
    attacked = {
        name: {c: np.empty((len(search.queries), width), np.float32) for c in attacks}
        for name, search in searches.items()
    }
    attack = {name: RetrievalAttack(model, search, config, batch_size=batch_size) for name, search in searches.items()}
    first = next(iter(searches.values()))
    examples = {int(place): Example() for place in first.queries[:EXAMPLES]}
    passes = count * len(corrupted) + sum(len(s.queries) for s in searches.values()) * len(attacks) * (config.steps + 1)
    with tqdm(total=passes, disable=not progress, unit="image") as bar:
        for start in range(0, count, BLOCK):
            places = np.arange(start, min(start + BLOCK, count))
            keys = [drawn.keys[place] for place in places]
            pixels = _decoded(drawn, places, model)
            for condition, vectors in corrupted.items():
                changed = pixels
                if condition != CLEAN:
                    changed = corrupt(pixels, condition.name, int(condition.strength), keys=keys, seed=config.seed)
                vectors[places] = model.encode_image([to_image(image) for image in changed], batch_size=batch_size)
                _keep(examples, condition, places, changed)
                bar.update(len(places))
            for name, search in searches.items():
                queries = np.flatnonzero((search.queries >= start) & (search.queries <= places[-1]))
                inside = search.queries[queries] - start
                for condition in attacks if len(queries) else ():
                    asked = [keys[place] for place in inside]
                    moved, vectors = attack[name](pixels[inside], asked, queries, condition.strength)
                    attacked[name][condition][queries] = vectors
                    if search is first:
                        _keep(examples, condition, search.queries[queries], moved.round().astype(np.uint8))
                    bar.update(len(queries) * (config.steps + 1))
    return ChangedQueries(corrupted, attacked, examples)


def _decoded(drawn: Side, places: np.ndarray, model: DualTower) -> np.ndarray:
    """uint8 ``[B, 3, H, W]``."""
    assert drawn.images is not None
    settings = model.config.image_settings
    opened = (open_image(drawn.images[place], where="catalog", row=drawn.keys[place]) for place in places)
    return np.stack([to_pixels(image, settings) for image in opened])


def _keep(examples: Mapping[int, Example], condition: Condition, places: np.ndarray, pixels: np.ndarray) -> None:
    for place, image in zip(places.tolist(), pixels, strict=True):
        if place in examples:
            examples[place].images[condition] = image.copy()
