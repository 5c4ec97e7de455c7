"""Look through images for damage: against clean ones with a threshold, or, without clean ones, against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dualtower.curation.damage.knn import KNNScorer
from dualtower.curation.damage.patch import PatchScorer
from dualtower.curation.damage.photos import Photos, decoded
from dualtower.curation.damage.reconstruction import ReconstructionScorer
from dualtower.curation.damage.scorer import METHODS, DamageScorer, Method
from dualtower.curation.damage.threshold import Threshold, choose_threshold, min_clean_rows
from dualtower.curation.outliers import robust_z
from dualtower.data.transforms.images import ImageSettings
from dualtower.errors import BrokenImage, DataError, UnknownName

if TYPE_CHECKING:
    from dualtower.models.dual_tower import DualTower

__all__ = ["MIN_MEMORY", "DamageReport", "create_scorer", "find_damage"]

MIN_MEMORY = 10
"""Clean rows that a scorer is fitted on at least, beside those that choose the threshold."""
HELD_OUT = 0.25
"""Share of the clean rows that choose the threshold; more where the false-alarm rate needs them."""
_SHOWN_CLEAN = 32  # held-out clean images whose heat maps say what heat is usual


@dataclass(frozen=True, eq=False)
class DamageReport:
    """Scores of images, the most damaged first.

    Attributes:
        method: A name of `METHODS`.
        photos: The images that were looked through, in the order of their scores.
        scores: What the method says of each, float ``[N]``. Without clean rows, how many median absolute deviations it
            lies beyond the median of its half.
        memory_rows: Images that the scorer was fitted on.
        clean: Where the clean rows come from; None where images were compared with each other.
        threshold: Above it an image counts as damaged; None without clean rows.
        skipped: Images that could not be decoded, clean ones too.
        heat: Heat maps of the first images, float ``[M, H, W]``.
        usual_heat: What counts as no heat and as full heat in drawings of them.
    """

    method: str
    photos: Photos
    scores: np.ndarray
    memory_rows: int
    clean: str | None
    threshold: Threshold | None
    skipped: Sequence[BrokenImage] = ()
    heat: np.ndarray = field(default_factory=lambda: np.empty((0, 1, 1), np.float32))
    usual_heat: tuple[float, float] = (0.0, 1.0)

    @property
    def damaged(self) -> np.ndarray:
        """Which images lie above the threshold, bool ``[N]``; none without one."""
        return np.zeros(len(self.scores), bool) if self.threshold is None else self.scores > self.threshold.value


def create_scorer(method: Method, model: DualTower, *, neighbors: int = 10) -> DamageScorer:
    """Make the scorer of a method, with the model's image tower where it needs one.

    Raises:
        UnknownName: No such method.
        ConfigError: The model has no image tower, or one that the method cannot use.
    """
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    model.config.require("image", "damage is looked for in images")
    if method == "reconstruction":
        return ReconstructionScorer()
    if method == "patch":
        return PatchScorer(model, neighbors=neighbors)
    return KNNScorer(model, neighbors=max(1, neighbors))


def find_damage(
    photos: Photos,
    clean: Photos | None,
    model: DualTower,
    *,
    method: Method = "patch",
    neighbors: int = 10,
    false_alarms: float = 0.01,
    max_clean: int = 3000,
    heat_maps: int = 50,
    seed: int = 0,
) -> DamageReport:
    """Score images by how damaged they look.

    With clean rows, a scorer is fitted on most of them, and a threshold is chosen on the others, whose products it has
    not seen. Without, the images are divided by product into two halves, each of which is scored by what is usual in
    the other; damage must be rare then, and there is no threshold.

    Args:
        photos: Images to look through.
        clean: Images of whole products, photographed as those are; None compares `photos` with each other.
        model: Whose image tower sees them; ``reconstruction`` takes no more of it than the size of its images.
        method: ``knn``, ``patch`` or ``reconstruction``.
        neighbors: Nearest clean images that an image is compared with; for ``patch``, 0 is one memory for all.
        false_alarms: Share of clean images that may count as damaged.
        max_clean: At most so many clean images, drawn at random, are looked at; all of them are in memory, in the size
            that the model sees.
        heat_maps: Heat maps to draw, of the images with the highest scores.
        seed: Draws the clean images, and divides them.

    Raises:
        UnknownName: No such method.
        ConfigError: The model cannot be used, or the rate is not possible.
        DataError: There are too few clean images for this rate, or they are all equal.
    """
    scorer = create_scorer(method, model, neighbors=neighbors)
    rng = np.random.default_rng(seed)
    if clean is None:
        second = create_scorer(method, model, neighbors=neighbors)
        return _among_themselves(photos, method, (scorer, second), model.config.image_settings, heat_maps, rng)
    needed = min_clean_rows(false_alarms)
    settings = model.config.image_settings
    drawn = clean.select(np.sort(rng.permutation(len(clean))[:max_clean]))
    pixels, rows, broken = _all_decoded(drawn, settings)
    if len(rows) < needed + MIN_MEMORY:
        of = f"{len(rows):,} clean images" + (f" of {max_clean:,} at most" if len(clean) > max_clean else "")
        raise DataError(
            f"{of} are too few for a false-alarm rate of {false_alarms:g}: {needed:,} choose the threshold and "
            f"{MIN_MEMORY} say what is clean, {needed + MIN_MEMORY:,} in all"
        )
    held_out = _held_out(drawn.products[rows], max(needed, round(HELD_OUT * len(rows))), rng)
    if (~held_out).sum() < MIN_MEMORY:
        raise DataError(
            f"the {len(rows):,} clean images show {len(np.unique(drawn.products[rows])):,} products, which are too few "
            "to hold some out; give clean images of more products"
        )
    scorer.fit(pixels[torch.from_numpy(~held_out)])
    kept = pixels[torch.from_numpy(held_out)]
    threshold = choose_threshold(scorer.score(kept), false_alarms)
    scores, found, more_broken = _scores(photos, scorer, settings)
    order = np.argsort(-scores, kind="stable")
    chosen = photos.select(found[order])
    heat, usual = np.empty((0, settings.height, settings.width), np.float32), (0.0, 1.0)
    if heat_maps and len(order):
        shown, _, _ = _all_decoded(chosen.select(np.arange(min(heat_maps, len(chosen)))), settings)
        heat = scorer.heat_maps(shown)
        usual = _scale(scorer.heat_maps(kept[:_SHOWN_CLEAN]))
    return DamageReport(
        method,
        chosen,
        scores[order],
        int((~held_out).sum()),
        clean.name,
        threshold,
        [*broken, *more_broken],
        heat,
        usual,
    )


def _among_themselves(
    photos: Photos,
    method: Method,
    scorers: tuple[DamageScorer, DamageScorer],
    settings: ImageSettings,
    heat_maps: int,
    rng: np.random.Generator,
) -> DamageReport:
    """Each half by what is usual in the other."""
    pixels, rows, broken = _all_decoded(photos, settings)
    products = photos.products[rows]
    if (count := len(np.unique(products))) < 2 * MIN_MEMORY:
        raise DataError(
            f"{len(rows):,} images of {count:,} products are too few to compare with each other, which takes "
            f"{2 * MIN_MEMORY} products; give clean ones to compare them with: --clean"
        )
    first = _held_out(products, len(rows) // 2, rng)
    halves = (torch.from_numpy(first), torch.from_numpy(~first))
    scores = np.empty(len(rows))
    for scorer, half in zip(scorers, halves, strict=True):
        scorer.fit(pixels[~half])
        scores[half.numpy()] = robust_z(scorer.score(pixels[half]))
    order = np.argsort(-scores, kind="stable")
    shown = torch.from_numpy(order[: min(heat_maps, len(order))].copy())
    heat, usual = np.empty((len(shown), settings.height, settings.width), np.float32), []
    for scorer, half in zip(scorers, halves, strict=True):
        if len(mine := shown[half[shown]]):
            heat[half[shown].numpy()] = scorer.heat_maps(pixels[mine])
        usual.append(scorer.heat_maps(pixels[half][:_SHOWN_CLEAN]))
    found, memory = photos.select(rows[order]), int(max(half.sum() for half in halves))
    return DamageReport(method, found, scores[order], memory, None, None, broken, heat, _scale(np.concatenate(usual)))


def _scale(usual: np.ndarray) -> tuple[float, float]:
    """No heat is the median of what is usual; full heat lies twice as far from it as hardly any usual pixel."""
    low, high = np.quantile(usual, [0.5, 0.999])
    return float(low), float(2 * high - low)


def _held_out(products: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Whole products drawn until they have so many rows or a few more, bool ``[N]``."""
    codes, number, sizes = np.unique(products, return_inverse=True, return_counts=True)
    order = rng.permutation(len(codes))
    taken = order[: int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1]
    held: np.ndarray = np.isin(number, taken)
    return held


def _all_decoded(photos: Photos, settings: ImageSettings) -> tuple[Tensor, np.ndarray, list[BrokenImage]]:
    """Pixels of all images that can be decoded, their numbers, and what is wrong with the others."""
    parts = list(decoded(photos, settings))
    broken = [error for _, _, errors in parts for error in errors]
    return torch.cat([pixels for _, pixels, _ in parts]), np.concatenate([rows for rows, _, _ in parts]), broken


def _scores(
    photos: Photos, scorer: DamageScorer, settings: ImageSettings
) -> tuple[np.ndarray, np.ndarray, list[BrokenImage]]:
    """Scores of all images that can be decoded, their numbers, and what is wrong with the others."""
    scores: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    broken: list[BrokenImage] = []
    for some, pixels, errors in decoded(photos, settings):
        broken += errors
        if len(some):
            rows.append(some)
            scores.append(scorer.score(pixels))
    if not rows:
        raise DataError(f"none of the {len(photos):,} images in {photos.name} can be decoded; the first: {broken[0]}")
    return np.concatenate(scores).astype(np.float64), np.concatenate(rows), broken
