"""Which rows make which batch.

Everything random here is a pure function of (seed, epoch): no worker, rank or restart changes what
batch number n of epoch e holds. That is what makes a killed and resumed run equal an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import column_labels, fit_classes
from dualtower.errors import ConfigError

__all__ = ["BatchSampler", "Sampling"]

Sampling = Literal["rows", "no_duplicate_products"]


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """Which rows make which batch: a pure function of (seed, epoch), equal on all ranks, with an exact length.

    ``rows`` visits every row once per epoch. ``no_duplicate_products`` also never puts two rows of one product into one
    (joined) batch: rows are grouped by product and dealt to the batches like cards, so that a product with at
    most as many rows as there are batches cannot meet itself; of a larger product a random selection takes part.
    The rows left over when they do not fill a batch differ from epoch to epoch.

    Args:
        items: Rows of the training split.
        batch_size: Rows per rank.
        sampling: ``rows`` or ``no_duplicate_products``.
        seed: Seed of the order.
        balance: Attribute whose classes are drawn equally often, with repetition; rows without a value take no part.
        rank: This process.
        world_size: Number of processes; together they see ``batch_size * world_size`` rows per step.

    Iterating gives lists of ``(row, draw)``, the draw being a random integer that chooses among several
    captions and images.

    Raises:
        ConfigError: The split does not fill one batch.
    """

    def __init__(
        self,
        items: ItemDataset,
        *,
        batch_size: int,
        sampling: Sampling = "rows",
        balance: str | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.codes = items.codes
        self.batch_size, self.sampling, self.seed = batch_size, sampling, seed
        self.rank, self.joined = rank, batch_size * world_size
        self.epoch, self.start = 0, 0
        self.chances = None if balance is None else _balanced(items, balance, sampling)
        counts = np.unique(self.codes, return_counts=True)[1]
        self.batches = len(self.codes) // self.joined
        if sampling == "no_duplicate_products":  # capping large products leaves fewer rows, so perhaps fewer batches
            while self.batches and np.minimum(counts, self.batches).sum() < self.batches * self.joined:
                self.batches -= 1
        if not self.batches:
            kind = "products" if sampling == "no_duplicate_products" else "rows"
            have = len(counts) if sampling == "no_duplicate_products" else len(self.codes)
            raise ConfigError(
                f"the split has {have} {kind}, fewer than one batch of {batch_size} on each of {world_size} "
                f"process(es); type --train.batch-size {max(1, have // world_size)} or less"
            )

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch; the first `start` batches of it are passed over (they were trained on before a stop)."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches per full epoch, the same on every rank and in every epoch."""
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        table = self._deal(rng) if self.sampling == "no_duplicate_products" else self._shuffle(rng)
        draws = rng.integers(2**31, size=table.shape)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for rows, drawn in zip(table[self.start :, mine], draws[self.start :, mine], strict=True):
            yield list(zip(rows.tolist(), drawn.tolist(), strict=True))

    def _shuffle(self, rng: np.random.Generator) -> np.ndarray:
        size = self.batches * self.joined
        if self.chances is not None:
            rows = rng.choice(len(self.codes), size, p=self.chances)
        else:
            rows = rng.permutation(len(self.codes))[:size]
        return rows.reshape(self.batches, self.joined)

    def _deal(self, rng: np.random.Generator) -> np.ndarray:
        shuffled = rng.permutation(len(self.codes))
        codes, product = np.unique(self.codes[shuffled], return_inverse=True)
        product = rng.permutation(len(codes))[product]  # a random order of products ...
        order = np.argsort(product, kind="stable")  # ... with the rows of each together, themselves shuffled
        grouped = product[order]
        nth_of_product = np.arange(len(grouped)) - np.searchsorted(grouped, grouped)
        kept = shuffled[order][nth_of_product < self.batches][: self.batches * self.joined]
        table = kept.reshape(self.joined, self.batches).T  # row k goes to batch k mod batches
        return rng.permuted(rng.permutation(table), axis=1)


def _balanced(items: ItemDataset, attribute: str, sampling: Sampling) -> np.ndarray:
    """Chance of each row, float64 ``[N]``, such that every class of the attribute is as likely as any other."""
    if sampling == "no_duplicate_products":
        raise ConfigError(
            "train.class_balanced_by repeats rows, which train.sampling 'no_duplicate_products' forbids; "
            "choose one of them"
        )
    columns = items.columns.attributes
    classes = fit_classes([attribute], columns)
    labels = column_labels(attribute, classes[attribute], columns[attribute])
    counts = np.bincount(labels[labels >= 0], minlength=len(classes[attribute]))
    return np.where(labels >= 0, 1 / (len(counts) * counts[labels]), 0.0)
