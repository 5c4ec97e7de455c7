"""Damage as the distance of the worst patch to clean patches: PatchCore, and SPADE's choice of whom to compare with.

K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, https://arxiv.org/abs/2106.08265;
N. Cohen and Y. Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences",
https://arxiv.org/abs/2005.02357.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualtower.curation.damage.knn import image_vectors
from dualtower.curation.damage.scorer import DamageScorer, batches, smoothed, to_size
from dualtower.errors import ConfigError
from dualtower.models.encoding import evaluation_mode
from dualtower.models.towers.image import TimmTower

if TYPE_CHECKING:
    from dualtower.models.dual_tower import DualTower

__all__ = ["PatchScorer", "chosen_stages", "greedy_coreset"]

MIN_GRID = 14
"""Patches along the shorter side that the coarser stage must leave, as in PatchCore: a ResNet's third stage at 224
pixels has 14. Of the main recipe's network at 80x60 pixels that chooses its first two stages, on which AUROC on stained
and torn validation photos is 0.59, and 0.56 on the second and third."""
MAX_WIDTH = 256
"""Numbers of a patch. More channels are projected at random, which keeps distances (Johnson and Lindenstrauss): 3,000
images of 28x28 patches then take 1.2 GB."""
_MEASURED = 256  # images that the deviations of the channels are measured on
_REWEIGHTED = 9  # neighbors of the nearest clean patch that its distance is weighed by, the paper's b
_LEAST_DEVIATION = 1.0  # of distances at a place, where channels have unit deviation; 0.3 and 3 do as well
_PROJECTED = 128  # dimensions in which the coreset is chosen
_CANDIDATES = 20  # patches that the coreset chooses each of its own from


class PatchScorer(DamageScorer):
    """The largest distance of a patch to its nearest clean patch.

    A patch is what two stages of the image tower's backbone say of a place: each channel is averaged over 3x3 places,
    resized to the grid of the finer stage, brought to unit deviation over the clean images, and both are joined.

    A catalog holds products of many kinds, of which one's strap is another's tear. So a patch is compared with those of
    the clean images whose vectors are nearest to the image's, as SPADE does. What remains is that a watch's dial is
    never like another's, so that the score counts by how many deviations a distance exceeds what these clean images
    have at the same place among their own neighbors (on 200 stained and torn validation photos of fashion products,
    AUROC 0.63 instead of 0.58).

    ``neighbors=0`` is PatchCore itself: one memory for all, thinned out by its greedy coreset, and the largest
    distance, weighed down where the nearest clean patch lies apart from other clean ones.

    Args:
        model: A model whose image tower can show its stages.
        neighbors: How many nearest clean images an image's patches are compared with; 0 for one memory for all.
        memory: Patches of the one memory.
        stages: Numbers of the stages, ascending; None chooses two, see `chosen_stages`.
        seed: Chooses the patches that the coreset chooses from.

    Raises:
        ConfigError: The model has no image tower, or one that cannot show such stages.
    """

    def __init__(
        self,
        model: DualTower,
        *,
        neighbors: int = 10,
        memory: int = 4000,
        stages: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        model.config.require("image", "damage is looked for in images")
        self.model, self.neighbors, self.memory, self.seed = model.for_inference(), neighbors, memory, seed
        self.stages = chosen_stages(self.model) if stages is None else tuple(stages)
        count = _tower(self.model).stage_count
        if not self.stages or list(self.stages) != sorted({*self.stages} & {*range(count)}):
            raise ConfigError(
                f"stages {list(self.stages)} are not possible; give ascending numbers from 0 to {count - 1}"
            )
        self.basis: Tensor | None = None  # from channels to what patches are compared in

    def _fit(self, clean: Tensor) -> None:
        self.basis = None
        some = torch.cat(list(self._patches(clean[:: -(-len(clean) // _MEASURED)]))).flatten(0, 2).float()
        self.basis = torch.diag(1 / some.std(0, correction=0).clamp(min=1e-3))
        if some.shape[1] > MAX_WIDTH:
            generator = torch.Generator().manual_seed(self.seed)
            self.basis = self.basis @ torch.randn(some.shape[1], MAX_WIDTH, generator=generator) / MAX_WIDTH**0.5
        patches = torch.cat(list(self._patches(clean)))
        if self.neighbors:
            self.clean, self.vectors = patches, image_vectors(self.model, clean)
            self.usual = torch.stack([_distances(mine, known) for mine, known, _ in self._among_clean()])
            return
        generator = torch.Generator().manual_seed(self.seed)
        flat = patches.flatten(0, 2)
        candidates = torch.randperm(len(flat), generator=generator)[: _CANDIDATES * self.memory]
        pool = flat[candidates].float()
        self.clean = pool[greedy_coreset(pool, self.memory, seed=self.seed)]

    def score(self, pixels: Tensor) -> np.ndarray:
        """See `DamageScorer.score`."""
        if not self.neighbors:
            return np.array([_reweighted(mine, known) for mine, known, _ in self._compared(pixels)], np.float32)
        scores = []
        for mine, known, nearest in self._compared(pixels):
            usual = self.usual[nearest]
            beyond = (_distances(mine, known) - usual.mean(0)) / (usual.std(0, correction=0) + _LEAST_DEVIATION)
            scores.append(float(beyond.max()))
        return np.array(scores, np.float32)

    def heat_maps(self, pixels: Tensor) -> np.ndarray:
        """See `DamageScorer.heat_maps`; distances of the patches, enlarged and smoothed."""
        maps = torch.stack([_distances(mine, known) for mine, known, _ in self._compared(pixels)])
        height, width = pixels.shape[2:]
        rows, columns = (
            -(-side // m) * m for side, m in zip((height, width), _tower(self.model).multiple, strict=True)
        )
        whole = to_size(maps.unflatten(1, self.grid), (rows, columns))
        return smoothed(whole)[:, :height, :width].numpy()

    def _compared(self, pixels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Patches of each image ``[P, C]``, the clean ones they are compared with ``[M, C]``, and whose these are."""
        for some in batches(pixels):
            (found,) = self._patches(some)
            self.grid = (found.shape[1], found.shape[2])
            if not self.neighbors:
                for mine in found:
                    yield mine.flatten(0, 1).float(), self.clean, torch.arange(0)
                continue
            alike = image_vectors(self.model, some) @ self.vectors.T
            nearest = alike.topk(min(self.neighbors, len(self.vectors)), dim=1).indices
            for mine, numbers in zip(found, nearest, strict=True):
                yield mine.flatten(0, 1).float(), self.clean[numbers].flatten(0, 2).float(), numbers

    def _among_clean(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As `_compared`, each clean image with the others."""
        for number, mine in enumerate(self.clean):
            alike = self.vectors @ self.vectors[number]
            alike[number] = -torch.inf
            nearest = alike.topk(min(self.neighbors, len(self.vectors) - 1)).indices
            yield mine.flatten(0, 1).float(), self.clean[nearest].flatten(0, 2).float(), nearest

    def _patches(self, pixels: Tensor) -> Iterator[Tensor]:
        """Patches of batches of images, float16 ``[B, h, w, C]``: half the memory, and three digits are enough."""
        tower = _tower(self.model)
        for some in batches(pixels):
            with evaluation_mode(self.model):
                maps = tower.stages(some.to(self.model.device), self.stages)
            averaged = [F.avg_pool2d(m.float(), 3, 1, 1, count_include_pad=False) for m in maps]
            grid = _finest(averaged)
            joined = torch.cat([_on_grid(m, grid) for m in averaged], 1).permute(0, 2, 3, 1).cpu()
            yield (joined if self.basis is None else joined @ self.basis).half()


def chosen_stages(model: DualTower) -> tuple[int, ...]:
    """Two stages of the image tower as PatchCore has them, which of a ResNet takes the second and the third.

    Of a backbone whose grid gets coarser: the two deepest that leave `MIN_GRID` patches along the shorter side, or the
    first two. Of a ViT, where all blocks have one grid: those at a half and at three quarters of its depth.

    Raises:
        ConfigError: The tower cannot show its stages.
    """
    tower = _tower(model)
    settings = model.config.image_settings
    blank = torch.zeros(1, 3, settings.height, settings.width, dtype=torch.uint8, device=model.device)
    count = tower.stage_count
    with evaluation_mode(model):
        grids = [min(found.shape[2:]) for found in tower.stages(blank, range(count))]
    if len(set(grids)) == 1:
        return tuple(sorted({count // 2, 3 * count // 4}))
    fine = [number for number, grid in enumerate(grids) if grid >= MIN_GRID]
    return tuple(fine[-2:] if len(fine) >= 2 else range(min(2, count)))


def greedy_coreset(patches: Tensor, size: int, *, seed: int = 0) -> Tensor:
    """Choose patches so that none of the others is far from all of them, int64 ``[min(size, N)]``.

    The greedy rule of minimax facility location: the next one is the farthest from those chosen (PatchCore, algorithm
    1), found in a random projection to 128 dimensions.

    Args:
        patches: float ``[N, C]``.
        size: How many.
        seed: Of the projection, and of the first one.
    """
    generator = torch.Generator().manual_seed(seed)
    if patches.shape[1] > _PROJECTED:
        patches = patches @ torch.randn(patches.shape[1], _PROJECTED, generator=generator) / _PROJECTED**0.5
    squares = patches.square().sum(1)
    chosen = [int(torch.randint(len(patches), (1,), generator=generator))]
    nearest = torch.full((len(patches),), torch.inf)
    while len(chosen) < min(size, len(patches)):
        last = patches[chosen[-1]]
        nearest = torch.minimum(nearest, squares - 2 * (patches @ last) + last.square().sum())
        nearest[chosen[-1]] = -torch.inf  # rounding may leave it a distance to itself
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def _distances(mine: Tensor, known: Tensor) -> Tensor:
    """Measure how far each patch is from the nearest of the known ones, ``[P]``."""
    return torch.cdist(mine, known).amin(1)


def _reweighted(mine: Tensor, known: Tensor) -> float:
    """The largest distance, less where the nearest clean patch has clean neighbors as far off (equation 7)."""
    distances, nearest = torch.cdist(mine, known).min(1)
    worst = int(distances.argmax())
    beside = known[int(nearest[worst])]
    around = torch.cdist(beside[None], known)[0].topk(min(_REWEIGHTED, len(known)), largest=False).indices
    share = (distances[worst] - torch.cdist(mine[worst][None], known[around])[0].logsumexp(0)).exp()
    return float((1 - share) * distances[worst])


def _finest(maps: Sequence[Tensor]) -> tuple[int, int]:
    """The grid that all are brought to: the finest, but no finer than twice `MIN_GRID`, which costs the square."""
    height, width = max(((m.shape[2], m.shape[3]) for m in maps), key=min)
    while min(height, width) >= 2 * MIN_GRID and len(maps) > 1:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def _on_grid(found: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize ``[B, C, h, w]`` to a grid."""
    if tuple(found.shape[2:]) == grid:
        return found
    coarser = found.shape[2] > grid[0]
    return F.interpolate(found, grid, mode="bilinear", align_corners=False, antialias=coarser)


def _tower(model: DualTower) -> TimmTower:
    tower = model.image_tower
    if not isinstance(tower, TimmTower) or not tower.stage_count:
        raise ConfigError("the image tower of this model cannot show its stages; type --method knn")
    return tower
