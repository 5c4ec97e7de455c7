"""Odd ones out: rows that look wrong, ranked, with images.

Two signs, each as a robust z-score (how many median absolute deviations a row lies beyond the median):

- *odd image*: its nearest neighbors are far (Ramaswamy et al., 2000, "Efficient algorithms for mining outliers"). A
  damaged file, a size chart, an item of another shop.
- *title and image apart*: their embeddings are less alike than those of other rows. A wrong image, a wrong title.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dualtower.data.transforms.images import open_image
from dualtower.errors import ConfigError, DataError
from dualtower.files import write_bytes_atomically, write_text_atomically
from dualtower.markdown import markdown_table
from dualtower.search.local.store import LocalStore
from dualtower.search.local.view import View
from dualtower.topk import largest

__all__ = ["Outliers", "find_outliers", "robust_z", "write_outliers"]

MAX_COMPARED = 100_000
"""A row is compared with at most so many others, drawn at random."""
_AT_ONCE = 2048


@dataclass(frozen=True, eq=False)
class Outliers:
    """Rows with an image, the oddest first. Arrays are ``[N]``.

    Attributes:
        numbers: Numbers of the rows, see `StoredRow.number`.
        odd: z-score of the distance to its neighbors.
        apart: z-score of the distance between title and image; NaN where there is no vector of the title.
    """

    numbers: np.ndarray
    odd: np.ndarray
    apart: np.ndarray


def find_outliers(store: LocalStore, *, neighbors: int = 10, seed: int = 0) -> Outliers:
    """Rank all rows that have an image by the stronger of the two signs.

    Args:
        store: The catalog.
        neighbors: How many nearest rows of other products a row is compared with.
        seed: Seed of the draw, in catalogs of more than `MAX_COMPARED` rows.

    Raises:
        DataError: There are too few rows.
        ConfigError: The catalog has no vectors of images.
    """
    if "image" not in store.info.vector_names:
        raise ConfigError("outliers are looked for among images, and this catalog has vectors of texts alone")
    view = store.searcher.views.current()
    slots = view.everything["image"].slots
    if len(np.unique(view.product_codes[slots])) <= neighbors:
        raise DataError(f"{len(slots)} rows with images are too few to find the odd ones among them")
    odd = robust_z(1 - _nearness(view, slots, neighbors, seed))
    apart = np.full(len(slots), np.nan)
    titled = view.has["text"][slots] if "text" in view.has else np.zeros(len(slots), bool)
    if titled.any():
        both = [view.vectors[vector_name].gather(slots[titled]).astype(np.float32) for vector_name in ("image", "text")]
        apart[titled] = robust_z(1 - np.einsum("nd,nd->n", *both))
    order = np.argsort(-np.fmax(odd, apart), kind="stable")
    return Outliers(view.numbers[slots[order]], odd[order], apart[order])


def write_outliers(found: Outliers, store: LocalStore, folder: Path, *, number: int = 50) -> str:
    """Write ``report.md`` and images of the oddest rows; returns its table."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    shown = found.numbers[:number].tolist()
    rows = store.catalog.at(shown)
    lines = []
    for rank, version in enumerate(shown):
        if (row := rows.get(version)) is None:
            continue
        shown = ""
        if (content := store.image(row.id)) is not None:
            thumbnail = open_image(content)
            thumbnail.thumbnail((160, 160))
            thumbnail.save(buffer := io.BytesIO(), "JPEG")
            write_bytes_atomically(images / f"{rank + 1}.jpg", buffer.getvalue())
            shown = f"![]({images.name}/{rank + 1}.jpg)"
        title = row.title.replace("<", "&lt;")
        lines.append([shown, row.id, title, f"{found.odd[rank]:.1f}", f"{found.apart[rank]:.1f}"])
    table = markdown_table(["", "id", "title", "odd image", "title and image apart"], lines, left=(0, 1, 2))
    explained = "How many median absolute deviations each row lies beyond the median of all rows; above 5 is rare."
    write_text_atomically(folder / "report.md", f"# Odd ones out\n\n{explained}\n\n{table}\n")
    return table


def _nearness(view: View, slots: np.ndarray, neighbors: int, seed: int) -> np.ndarray:
    """Mean similarity of each row to its nearest rows of other products, ``[N]``."""
    others = np.sort(np.random.default_rng(seed).permutation(slots)[:MAX_COMPARED])
    compared = view.vectors["image"].gather(others).astype(np.float32)
    product_codes = view.product_codes[others]
    found = np.empty(len(slots), np.float32)
    for start in range(0, len(slots), _AT_ONCE):
        some = slots[start : start + _AT_ONCE]
        alike = view.vectors["image"].gather(some).astype(np.float32) @ compared.T
        alike[view.product_codes[some][:, None] == product_codes[None]] = -np.inf
        nearest = largest(alike, neighbors)
        found[start : start + len(some)] = np.where(np.isfinite(nearest), nearest, -1).mean(1)
    return found


def robust_z(distances: np.ndarray) -> np.ndarray:
    """How many median absolute deviations each of ``[N]`` numbers lies beyond their median; of a normal, deviations."""
    middle = np.median(distances)
    spread = np.median(np.abs(distances - middle))
    scores: np.ndarray = (distances - middle) / (1.4826 * max(float(spread), 1e-6))
    return scores
