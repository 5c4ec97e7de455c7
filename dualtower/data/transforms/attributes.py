"""Attributes of products as numbers: codes of categories, normalized quantities, and what is missing of both."""

from __future__ import annotations

import bisect
import math
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from dualtower.config import OMIT_DEFAULT
from dualtower.errors import ConfigError, DataError, UnknownName
from dualtower.types import AttributeValues

__all__ = [
    "UNKNOWN",
    "AttributesConfig",
    "attribute_values",
    "class_labels",
    "column_labels",
    "column_numbers",
    "every_row",
    "fit_attributes",
    "fit_classes",
    "with_values_of",
]

BUCKETS = 5  # classes of a quantity
_BUCKET = "from "
UNKNOWN = 0  # code of a missing category, and of one that training never saw


@dataclass(frozen=True)
class AttributesConfig:
    """Which attributes a model reads, and what training knew of their values. It is saved with the model."""

    names: tuple[str, ...] = ()
    """Attributes of the data card to read, such as articleType, brand, price."""
    width: int = 64
    """Width of one attribute's vector."""
    dropout: float = 0.1
    """Share of the attributes that are hidden while training, each for itself."""
    pretrained: str | None = field(default=None, metadata=OMIT_DEFAULT)
    """Folder of a model whose attribute tower to start from, such as `recipes/pretrain_attributes.py` leaves behind."""
    categories: Mapping[str, list[str]] = field(default_factory=dict)
    """Attribute -> known values; filled in from the training split."""
    numbers: Mapping[str, list[float]] = field(default_factory=dict)
    """Attribute -> mean and standard deviation; filled in from the training split."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"attributes.dropout is {self.dropout}; it must be at least 0 and below 1")


def fit_attributes(
    config: AttributesConfig, attributes: Mapping[str, Sequence[Any]], numeric: Collection[str] = ()
) -> AttributesConfig:
    """Fill in what the training split knows: the values of each category, mean and deviation of each number.

    Args:
        config: With `names`.
        attributes: Attribute -> values of the training rows.
        numeric: Attributes that the data card declares to be quantities.

    Raises:
        UnknownName: The card has no such attribute.
        DataError: An attribute is empty in all rows, or a number is none.
    """
    categories: dict[str, list[str]] = {}
    numbers: dict[str, list[float]] = {}
    for name in config.names:
        if name not in attributes:
            raise UnknownName("attribute", name, attributes)
        known = (value for value in attributes[name] if not _missing(value))
        if name in numeric:
            values = array("d", (_number(name, value) for value in known))
            if not values:
                raise _empty(name, attributes)
            mean = sum(values) / len(values)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
            numbers[name] = [mean, deviation or 1.0]
        else:
            categories[name] = sorted(set(map(str, known)))
            if not categories[name]:
                raise _empty(name, attributes)
    return replace(config, categories=categories, numbers=numbers)


def with_values_of(config: AttributesConfig, earlier: AttributesConfig) -> AttributesConfig:
    """Add the values that another model knows of the same categories, so that what it has learned of them stays."""
    known = {name: sorted({*own, *earlier.categories.get(name, ())}) for name, own in config.categories.items()}
    return replace(config, categories=known)


def attribute_values(config: AttributesConfig, rows: Sequence[Mapping[str, Any]]) -> AttributeValues:
    """Read the attributes of some products.

    Raises:
        DataError: A quantity is no number.
    """
    codes = class_labels(config.categories, rows) + 1  # unknown and missing become 0
    numbers = [[_normalized(name, row.get(name), *config.numbers[name]) for name in config.numbers] for row in rows]
    return AttributeValues(codes, torch.tensor(numbers, dtype=torch.float32).reshape(len(rows), -1))


def fit_classes(
    names: Collection[str], attributes: Mapping[str, Sequence[Any]], numeric: Collection[str] = ()
) -> dict[str, list[str]]:
    """The classes that the training split knows of some attributes, for heads that predict them.

    The classes of a quantity are buckets that hold about as many training rows each, named by their lower ends.

    Raises:
        UnknownName: The card has no such attribute.
        DataError: An attribute is empty, or has one class only, or a quantity is no number.
    """
    classes = {}
    for name in names:
        if name not in attributes:
            raise UnknownName("attribute", name, attributes)
        known = (value for value in attributes[name] if not _missing(value))
        if name in numeric and (numbers := array("d", (_number(name, value) for value in known))):
            inner = np.unique(np.quantile(numbers, np.arange(1, BUCKETS) / BUCKETS))
            classes[name] = [_bucket_name(-math.inf), *(_bucket_name(edge) for edge in inner if edge > min(numbers))]
        else:
            classes[name] = sorted(set(map(str, known)))
        if len(classes[name]) < 2:
            found = f"one class, {classes[name][0]!r}" if classes[name] else "no value at all"
            raise DataError(f"attribute {name!r} has {found} in the training split; a head needs two or more classes")
    return classes


def column_labels(name: str, known: Sequence[str], values: Iterable[Any]) -> np.ndarray:
    """`class_labels` of one attribute, given by its values, int64 ``[N]``."""
    return np.fromiter(map(_label_reader(name, known), values), np.int64)


def column_numbers(name: str, mean: float, deviation: float, values: Iterable[Any]) -> np.ndarray:
    """The values of one quantity, normalized, float64 ``[N]``; NaN where it is missing.

    Raises:
        DataError: A value is no number.
    """
    return np.fromiter((_normalized(name, value, mean, deviation) for value in values), np.float64)


def every_row(attributes: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    """The attributes of each of `count` rows, from those of each column."""
    if not attributes:
        return [{} for _ in range(count)]
    return [dict(zip(attributes, values, strict=True)) for values in zip(*attributes.values(), strict=True)]


def class_labels(classes: Mapping[str, Sequence[str]], rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Number of each product's class, int64 ``[B, C]``; -1 where it is missing or unknown."""
    readers = [_label_reader(name, known) for name, known in classes.items()]
    labels = [[read(row.get(name)) for name, read in zip(classes, readers, strict=True)] for row in rows]
    return torch.tensor(labels, dtype=torch.int64).reshape(len(rows), -1)


def _empty(name: str, attributes: Mapping[str, Sequence[Any]]) -> DataError:
    return DataError(f"attribute {name!r} is empty in all {len(attributes[name])} training rows; leave it out")


def _label_reader(name: str, known: Sequence[str]) -> Callable[[Any], int]:
    """From a value to the number of its class or bucket."""
    if known and known[0] == _bucket_name(-math.inf):
        edges = [float(label.removeprefix(_BUCKET)) for label in known]
        return lambda value: -1 if _missing(value) else bisect.bisect_right(edges, _number(name, value)) - 1
    numbers = {value: i for i, value in enumerate(known)}
    return lambda value: numbers.get(_text(value), -1)


def _bucket_name(edge: float) -> str:
    return f"{_BUCKET}{edge:g}"


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    return "" if _missing(value) else str(value)


def _normalized(name: str, value: Any, mean: float, deviation: float) -> float:
    return math.nan if _missing(value) else (_number(name, value) - mean) / deviation


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"attribute {name!r} holds {value!r}, which is no finite number; mend it or leave it empty")
    return number
