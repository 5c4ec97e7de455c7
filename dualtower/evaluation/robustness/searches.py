"""Which images search what: their texts, other images of their product, or themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dualtower.data.items import ItemDataset
from dualtower.errors import DataError
from dualtower.evaluation.relevance import Relevance
from dualtower.evaluation.reports.report import TITLES as RETRIEVAL_TITLES
from dualtower.evaluation.sides import Side, image_side, text_side
from dualtower.models.dual_tower import DualTower

__all__ = ["TITLES", "Search", "draw_searches"]

TITLES = RETRIEVAL_TITLES | {"own_image": "image → its own clean image"}


@dataclass(frozen=True, eq=False)
class Search:
    """One way of searching by images, whose gallery stays clean.

    Attributes:
        queries: Positions of Q queries among the images that were drawn, int64 ``[Q]``; each has something to find.
        groups: Product code of each query, int64 ``[Q]``.
        gallery: G texts or images.
        relevance: Q queries over G items.
        own: Gallery position of each query's own image, which it does not find, int64 ``[Q]``; None where there is none
            or where that is what it has to find.
    """

    queries: np.ndarray
    groups: np.ndarray
    gallery: Side
    relevance: Relevance
    own: np.ndarray | None = None

    def with_gallery(self, embeddings: np.ndarray) -> Search:
        """The same with the gallery's embeddings ``[G, D]``."""
        return replace(self, gallery=replace(self.gallery, embeddings=embeddings))


def draw_searches(
    model: DualTower, items: ItemDataset, *, rows: int | None, seed: int
) -> tuple[Side, dict[str, Search], list[str]]:
    """Draw the images that search, and find out what they can search.

    They search the texts of all rows where there are texts and a tower for them, and the images of all rows where their
    product has another one. Where neither is possible, an image has to find itself among all clean images.

    Args:
        model: With an image tower.
        items: N rows.
        rows: Most rows to draw, of those with images; where they search images alone, of those whose product has
            another image. None is all of them.
        seed: Seed of the draw.

    Returns:
        The images drawn, without embeddings; name -> search (a key of `TITLES`), whose galleries have none either; and
        what cannot be measured, each with its reason.

    Raises:
        DataError: No row has an image.
    """
    if all(image is None for image in items.images):
        raise DataError(
            f"{items.card}, split {items.split}: no row has an image to change; "
            "name the column of the images as columns.image of the card"
        )
    images = image_side(items)
    codes = items.codes[images.rows]
    _, number, times = np.unique(codes, return_inverse=True, return_counts=True)
    shared = times[number] > 1  # the product has another image
    titled = "text" in model.config.modalities and any(items.columns.texts)
    eligible = images.rows if titled or not shared.any() else images.rows[shared]
    drawn = np.flatnonzero(np.isin(images.rows, _draw(np.unique(eligible), rows, seed)))
    asking = replace(
        images,
        rows=images.rows[drawn],
        keys=[images.keys[place] for place in drawn],
        images=images.images.select(drawn) if images.images is not None else None,
    )
    searches: dict[str, Search] = {}
    left_out = []
    if titled:
        texts = text_side(items)
        text_codes = items.codes[texts.rows]
        queries = np.flatnonzero(np.isin(codes[drawn], text_codes))
        asked = codes[drawn[queries]]
        if len(queries):
            searches["image_to_text"] = Search(queries, asked, texts, Relevance.from_products(asked, text_codes))
    queries = np.flatnonzero(shared[drawn])
    if len(queries):
        own = drawn[queries]
        relevance = Relevance.from_products(codes[own], codes).without(own)
        searches["image_to_image"] = Search(queries, codes[own], images, relevance, own)
    elif searches:
        left_out.append("image → image: no product of the drawn rows has another image")
    if not searches:
        relevance = Relevance.from_pairs(np.arange(len(drawn)), drawn, shape=(len(drawn), len(codes)))
        searches["own_image"] = Search(np.arange(len(drawn)), codes[drawn], images, relevance)
        left_out.append("image → image: no product has another image, so that each image has to find itself")
    return asking, searches, left_out


def _draw(rows: np.ndarray, most: int | None, seed: int) -> np.ndarray:
    if most is None or most >= len(rows):
        return rows
    return np.random.default_rng(seed).choice(rows, most, replace=False)
