"""Projected gradient descent against retrieval: images that look the same and find something else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dualtower.evaluation.robustness.attack import pgd
from dualtower.evaluation.robustness.config import RobustnessConfig
from dualtower.evaluation.robustness.corruptions import row_rng
from dualtower.evaluation.robustness.result import PGD
from dualtower.evaluation.robustness.searches import Search
from dualtower.losses.similarity import similarities
from dualtower.models.dual_tower import DualTower
from dualtower.models.encoding import CORE_BATCH, evaluation_mode
from dualtower.threads import single_thread_pool
from dualtower.types import Batch

__all__ = ["RetrievalAttack", "odds_against"]


def odds_against(scores: Tensor, relevant: Tensor, absent: Tensor) -> Tensor:
    """Log odds that a query's softmax over the gallery falls on something irrelevant.

    Their sigmoid is the share of the irrelevant, so that they rise and fall with the cross-entropy that contrastive
    training minimizes. But their gradient does not vanish where the model is sure, which would look like robustness
    (N. Carlini and D. Wagner 2017, https://arxiv.org/abs/1608.04644, on losses of attacks).

    Args:
        scores: Scaled similarities, ``[B, G]``.
        relevant: What is relevant to each query, bool ``[B, G]``.
        absent: What each query does not find, relevant or not, bool ``[B, G]``.

    Returns:
        ``[B]``; minus infinity where nothing irrelevant could be found.
    """
    wrong = scores.masked_fill(relevant | absent, -torch.inf).logsumexp(1)
    return wrong - scores.masked_fill(~relevant | absent, -torch.inf).logsumexp(1)


class RetrievalAttack:
    """Moves the pixels of query images so that what they find is wrong: untargeted, and it knows model and gallery.

    Args:
        model: Computes in float32; it stays as it is.
        search: What the images search, with embeddings of the gallery.
        config: Steps, step size and seed.
        batch_size: Images attacked at a time, on a CPU 64 at most on each core.
    """

    def __init__(self, model: DualTower, search: Search, config: RobustnessConfig, *, batch_size: int) -> None:
        self.model, self.search, self.config = model, search, config
        self.on_cpu = model.device.type == "cpu"
        self.batch_size = min(batch_size, CORE_BATCH) if self.on_cpu else batch_size
        self.gallery = torch.from_numpy(search.gallery.embeddings).to(model.device)

    def __call__(
        self, pixels: np.ndarray, keys: Sequence[str], queries: np.ndarray, epsilon: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Attack some queries.

        Args:
            pixels: Their images, uint8 ``[B, 3, H, W]``.
            keys: What their random starts are drawn from, length B.
            queries: Their numbers in the search, int64 ``[B]``.
            epsilon: How far each pixel value may move, in 255ths.

        Returns:
            Attacked pixels, float32 ``[B, 3, H, W]`` and not rounded, and their embeddings, float32 ``[B, D]``.
        """
        moved = np.empty(pixels.shape, np.float32)
        vectors = np.empty((len(pixels), self.gallery.shape[1]), np.float32)

        def work(start: int) -> None:
            some = slice(start, start + self.batch_size)
            moved[some], vectors[some] = self._attack(pixels[some], keys[some], queries[some], epsilon)

        starts = range(0, len(pixels), self.batch_size)
        with evaluation_mode(self.model), torch.inference_mode(False):  # that mode forbids gradients
            if self.on_cpu:
                with single_thread_pool() as pool:
                    list(pool.map(work, starts))
            else:
                list(map(work, starts))
        return moved, vectors

    def _attack(
        self, pixels: np.ndarray, keys: Sequence[str], queries: np.ndarray, epsilon: float
    ) -> tuple[np.ndarray, np.ndarray]:
        search, device = self.search, self.model.device
        relevant = torch.zeros(len(queries), len(self.gallery), dtype=torch.bool)
        absent = torch.zeros_like(relevant)
        for row, query in enumerate(queries.tolist()):
            relevant[row, search.relevance.items[slice(*search.relevance.starts[query : query + 2])]] = True
            if search.own is not None:
                absent[row, search.own[query]] = True
        relevant, absent = relevant.to(device), absent.to(device)
        random = [row_rng(self.config.seed, PGD, key).random(pixels.shape[1:], np.float32) for key in keys]

        def loss(changed: Tensor) -> Tensor:
            alike = similarities(self._embed(changed), self.gallery, self.model.config.similarity)
            return odds_against(self.model.scale * alike, relevant, absent)

        found = pgd(
            torch.from_numpy(pixels).to(device),
            loss,
            epsilon=epsilon,
            steps=self.config.steps,
            step_size=self.config.step_size,
            start=torch.from_numpy(2 * np.stack(random) - 1).to(device),
        )
        with torch.no_grad():
            return found.cpu().numpy(), self._embed(found).cpu().numpy()

    def _embed(self, pixels: Tensor) -> Tensor:
        size = len(pixels)
        batch = Batch(ids=("",) * size, product_codes=torch.zeros(size, dtype=torch.int64), pixels=pixels)
        image = self.model(batch).image
        assert image is not None
        return image
