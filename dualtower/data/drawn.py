"""A catalogue drawn by code: products that are combinations of attributes, and titles that name them.

It needs no network and no licence, trains in minutes, and still measures something. The combinations of the
held-out splits do not occur in training, but every single attribute value does: a model that has understood
"stripes" and "teapot" finds the striped teapot that it has never seen, one that has learnt products by heart
does not. Products come in families, as in a shop: beside the blue cotton bag with white stripes hang the
white one with blue stripes, the denim one and the one with dots.

The same arguments give the same pictures and titles, byte for byte; only another version of Pillow may place
a pixel of an edge differently. Both languages name the same pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import get_args

import numpy as np

from dualtower.data.drawn_pictures import COLOURS, MATERIALS, OBJECTS, PATTERNS, Look, draw_view, encode_png
from dualtower.data.drawn_titles import Language, title
from dualtower.data.products import Products
from dualtower.errors import ConfigError, UnknownName, UnknownSplit
from dualtower.types import Product, product_code

__all__ = ["SPLITS", "draw_catalogue"]

SPLITS = ("train", "validation", "test")
HELD_OUT = (0.1, 0.3)  # shares of validation and test
FAMILY = 4  # products that differ from one of them in one respect
FEWEST, MOST = (
    200,
    10_000,
)  # products: with fewer, the words of the held-out ones might not all be in training


def draw_catalogue(
    *, language: Language = "en", products: int = 480, views: int = 4, seed: int = 0, split: str = "train"
) -> Products:
    """Draw one split of the catalogue.

    Every row is one view of a product, a PNG of 64x64 pixels, with two captions of its own. The attributes
    ``object``, ``colour``, ``pattern``, ``accent`` and ``material`` have English values in both languages.

    Args:
        language: Of the titles, ``en`` or ``zh``.
        products: Number of products in all splits together.
        views: Pictures of each product, which differ in position, background and light.
        seed: Seed of everything random.
        split: ``train``, ``validation``, ``test`` or ``all``.

    Raises:
        UnknownSplit: There is no such split.
        UnknownName: There is no such language.
        ConfigError: Too few or too many products, or no view.
    """
    if split not in (*SPLITS, "all"):
        raise UnknownSplit("split of the drawn catalogue", split, (*SPLITS, "all"))
    if language not in get_args(Language):
        raise UnknownName("language of the drawn catalogue", language, get_args(Language))
    if views < 1:
        raise ConfigError(f"views {views} is not possible; give 1 or more")
    if not FEWEST <= products <= MOST:
        raise ConfigError(f"products {products} is not possible; give {FEWEST} to {MOST}")
    splits = _choose_products(products, seed)
    looks = [look for name in SPLITS if split in (name, "all") for look in splits[name]]
    rows = [row for look in looks for row in _draw_product(look, language, views, seed)]
    return Products.from_rows(rows, card="drawn" if language == "en" else f"drawn_{language}", split=split)


def _choose_products(count: int, seed: int) -> dict[str, list[Look]]:
    """The products of each split; a family is never divided."""
    rng = np.random.default_rng(seed)
    families: list[list[Look]] = []
    known: set[Look] = set()
    while len(known) < count:
        family = _family(rng, min(FAMILY, count - len(known)), known)
        families.append(family)
        known.update(family)

    # A family that shows an attribute value for the first time goes to the end of the line: to training.
    seen: set[str] = set()
    first: list[list[Look]] = []
    others: list[list[Look]] = []
    for family in families:
        values = {value for look in family for value in asdict(look).values()}
        (others if values <= seen else first).append(family)
        seen |= values
    line = [look for family in others + first for look in family]
    ends = [round(count * share / FAMILY) * FAMILY for share in HELD_OUT]
    return {
        "validation": line[: ends[0]],
        "test": line[ends[0] : ends[0] + ends[1]],
        "train": line[ends[0] + ends[1] :],
    }


def _family(rng: np.random.Generator, size: int, known: set[Look]) -> list[Look]:
    """Up to `size` new products: one at random, and others that differ from it in one respect."""
    head = _random_look(rng)
    while head in known:
        head = _random_look(rng)
    family = [head]
    while len(family) < size:
        sibling = _sibling(head, rng)
        if sibling not in known and sibling not in family:
            family.append(sibling)
    return family


def _random_look(rng: np.random.Generator) -> Look:
    name = _pick(OBJECTS, rng)
    colour, pattern = _pick(COLOURS, rng), _pick(PATTERNS, rng)
    return Look(name, colour, pattern, _accent(colour, pattern, rng), _pick(MATERIALS[OBJECTS[name]], rng))


def _sibling(head: Look, rng: np.random.Generator) -> Look:
    """A product that differs from `head` in one attribute, or has its colour and accent exchanged."""
    other = _random_look(rng)
    match _pick(("object", "colour", "pattern", "accent", "material", "exchange"), rng):
        case "object" if OBJECTS[other.object] == OBJECTS[head.object]:
            return replace(head, object=other.object)
        case "colour" if head.accent == "none" or _differ(other.colour, head.accent):
            return replace(head, colour=other.colour)
        case "pattern":
            keeps = head.accent != "none" and other.pattern != "plain"
            accent = head.accent if keeps else _accent(head.colour, other.pattern, rng)
            return replace(head, pattern=other.pattern, accent=accent)
        case "accent":
            return replace(head, accent=_accent(head.colour, head.pattern, rng))
        case "material" if OBJECTS[other.object] == OBJECTS[head.object]:
            return replace(head, material=other.material)
        case "exchange" if head.accent != "none":
            return replace(head, colour=head.accent, accent=head.colour)
    return head


def _accent(colour: str, pattern: str, rng: np.random.Generator) -> str:
    """The colour of a pattern on a ground of `colour`."""
    if pattern == "plain":
        return "none"
    return _pick([accent for accent in COLOURS if _differ(accent, colour)], rng)


def _differ(one: str, other: str) -> bool:
    """Whether two colours can be told apart side by side, under any light."""
    return sum(abs(a - b) for a, b in zip(COLOURS[one], COLOURS[other], strict=True)) >= 180


def _pick(choices: Iterable[str], rng: np.random.Generator) -> str:
    ordered = tuple(choices)
    return ordered[int(rng.integers(len(ordered)))]


def _draw_product(look: Look, language: Language, views: int, seed: int) -> Iterator[Product]:
    """The rows of one product; they depend on the product only, not on what else is in the catalogue."""
    name = "-".join(value.replace(" ", "-") for value in asdict(look).values() if value != "none")
    number = product_code(name)
    for view in range(views):
        # From 1: numpy takes [seed, number] and [seed, number, 0] for the same seed.
        shared, own, words = (
            np.random.default_rng(key)
            for key in (
                [seed, number],
                [seed, number, view + 1],
                [seed, number, view + 1, get_args(Language).index(language) + 1],
            )
        )
        yield Product(
            id=f"{name}-{view}",
            product_id=name,
            texts=(title(look, language, words), title(look, language, words)),
            image=encode_png(draw_view(look, shared, own)),
            attributes=asdict(look),
        )
