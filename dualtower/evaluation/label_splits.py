"""Rows with and without labels: what a probe may learn from, and what it has to predict."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from dualtower.data.items import ItemDataset
from dualtower.data.transforms.attributes import column_labels, fit_classes
from dualtower.errors import ConfigError, DataError

__all__ = ["LabeledSplits", "check_fractions", "label_draws", "labeled_splits"]


@dataclass(frozen=True, eq=False)
class LabeledSplits:
    """The rows of two splits that have an image and a class.

    Attributes:
        label: The attribute.
        classes: Its values among the training rows, or ranges of them.
        train: Rows that may be learned from.
        test: Rows that are predicted.
        train_labels: Class of each training row, int64 ``[N]``.
        test_labels: Class of each test row, int64 ``[M]``.
        left_out: What was left out of which split, in words.
    """

    label: str
    classes: Sequence[str]
    train: ItemDataset
    test: ItemDataset
    train_labels: np.ndarray
    test_labels: np.ndarray
    left_out: Sequence[str] = ()

    @property
    def counts(self) -> np.ndarray:
        """Training rows of each class, int64 ``[C]``."""
        return np.bincount(self.train_labels, minlength=len(self.classes))


def labeled_splits(
    train: ItemDataset, test: ItemDataset, label: str, *, numeric: Collection[str] = ()
) -> LabeledSplits:
    """Leave out the rows without an image, without the label, and those to test whose class training does not have.

    Args:
        train: Rows that may be learned from.
        test: Rows that are predicted.
        label: An attribute of the card.
        numeric: Attributes that the card declares to be quantities; the classes of such a label are five ranges.

    Raises:
        UnknownName: The card has no such attribute.
        DataError: A split has no images, the label has fewer than two classes, or no row can be tested.
    """
    (train, train_left), (test, test_left) = (_with_images(items, label) for items in (train, test))
    classes = fit_classes([label], train.columns.attributes, numeric)[label]
    train, train_labels, unlabeled = _with_label(train, label, classes)
    test, test_labels, unknown = _with_label(test, label, classes)
    if not len(test):
        raise DataError(
            f"{test.card}, split {test.split}: no row has an image and a class of {label!r} that training has; "
            "measure another split, or probe another label"
        )
    left_out = [
        f"{', '.join(reasons)} of the {name} rows"
        for name, reasons in (("training", train_left + unlabeled), ("test", test_left + unknown))
        if reasons
    ]
    return LabeledSplits(label, classes, train, test, train_labels, test_labels, left_out)


def _with_images(items: ItemDataset, label: str) -> tuple[ItemDataset, list[str]]:
    """The rows that have an image, and how many have none, in words."""
    there = items.images.sizes() >= 0
    if not there.any():
        raise DataError(
            f"{items.card}, split {items.split}: no row has an image, and a probe asks what images tell of {label!r}; "
            "name the column of the images in the data card (columns: {image: ...})"
        )
    if there.all():
        return items, []
    return items.select(np.flatnonzero(there)), [f"{(~there).sum():,} without an image"]


def _with_label(items: ItemDataset, label: str, classes: Sequence[str]) -> tuple[ItemDataset, np.ndarray, list[str]]:
    """The rows whose class is known, their classes, and how many are left out why, in words."""
    values = list(items.columns.attributes[label]) if label in items.columns.attributes else [None] * len(items)
    labels = column_labels(label, classes, values)
    known = labels >= 0
    if known.all():
        return items, labels, []
    missing = sum(value is None or value == "" or value != value for value in values)
    counted = {f"without {label}": missing, f"of a {label} that training does not have": int((~known).sum()) - missing}
    rows = np.flatnonzero(known)
    return items.select(rows), labels[rows], [f"{number:,} {reason}" for reason, number in counted.items() if number]


def label_draws(
    splits: LabeledSplits, fractions: Sequence[float], *, draws: int, seed: int = 0
) -> list[list[np.ndarray]]:
    """Draw the rows whose labels may be known, several times for each fraction.

    Every draw is stratified: each class keeps its share of the rows, and at least one. With a plain draw of one percent
    a long tail would lose most of its classes, and a model would be judged by classes that it could not have met; two
    models, or two draws, would then be compared by different tasks. A fraction that is too small for one row of every
    class is refused, since no draw of it can keep them all. A smaller fraction lies within a larger one of the same
    draw, so that they differ by what is added.

    Args:
        splits: See `labeled_splits`.
        fractions: Shares of the training rows, above 0 and at most 1.
        draws: How often to draw; all rows are drawn once.
        seed: Seed of the draws.

    Returns:
        For each fraction and each draw the numbers of the rows, ascending, int64 ``[round(fraction * N)]``.

    Raises:
        ConfigError: A fraction lies outside, or leaves a class without a row; or there are no fractions or draws.
    """
    rows, classes = len(splits.train_labels), len(splits.classes)
    check_fractions(fractions)
    if draws < 1:
        raise ConfigError(f"{draws} draws of the labels; give 1 or more")
    for fraction in fractions:
        if round(fraction * rows) < classes:
            raise ConfigError(
                f"fraction {fraction:g} of the labels is {round(fraction * rows):,} of {rows:,} rows, which leaves a "
                f"class without a row: {splits.label!r} has {classes:,} classes; give {_at_least(classes, rows):g} "
                "or more"
            )
    orders = [_stratified_order(splits.train_labels, np.random.default_rng([seed, draw])) for draw in range(draws)]
    counts = [round(fraction * rows) for fraction in fractions]
    return [[np.sort(order[:count]) for order in orders[: 1 if count == rows else None]] for count in counts]


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse fractions that are none.

    Raises:
        ConfigError: There are none, or one lies outside (0, 1].
    """
    if not fractions:
        raise ConfigError("no fraction of the labels; give one or more, such as 0.01 0.1 1")
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise ConfigError(
                f"fraction {fraction:g} of the labels: give shares above 0 and at most 1, such as 0.01 0.1 1"
            )


def _stratified_order(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random order of rows whose every beginning holds each class by its share, after one row of each, int64 ``[N]``.

    Rows join as seats do by the method of Webster and Sainte-Laguë, the k-th of n of a class at (k - 1/2) / n. Shares
    rounded by largest remainders would not be nested: a class can lose a row when the total grows.
    """
    shuffled = random.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, first, number, counts = np.unique(labels[by_class], return_index=True, return_inverse=True, return_counts=True)
    nth = np.arange(len(by_class)) - first[number]
    joins = np.where(nth == 0, -1.0, (nth + 0.5) / counts[number])
    among_equals = random.permutation(len(by_class))
    order: np.ndarray = by_class[np.lexsort((among_equals, joins))]
    return order


def _at_least(classes: int, rows: int) -> float:
    """The smallest fraction with four decimals that has a row for each class."""
    return min(1.0, -(-classes * 10_000 // rows) / 10_000)
