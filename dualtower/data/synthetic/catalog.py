"""A synthetic catalog: products that are combinations of attributes, and titles that name them.

It needs no network and no license, trains in minutes, and still measures something. The combinations of the
held-out splits do not occur in training, but every single attribute value does: a model that has understood
"stripes" and "teapot" finds the striped teapot that it has never seen, one that has learned products by heart
does not. Products come in families, as in a shop: beside the blue cotton bag with white stripes hang the
white one with blue stripes, the denim one and the one with dots.

The same arguments give the same images and titles, byte for byte; only another version of Pillow may place
a pixel of an edge differently. Both languages name the same images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import get_args

import numpy as np

from dualtower.data.items import ItemDataset
from dualtower.data.synthetic.kept import kept_rows
from dualtower.data.synthetic.rendering import (
    COLORS,
    MATERIALS,
    OBJECTS,
    PATTERNS,
    ProductSpec,
    encode_png,
    render_view,
)
from dualtower.data.synthetic.titles import Language, title
from dualtower.errors import ConfigError, UnknownName, UnknownSplit
from dualtower.types import Item, product_code

__all__ = ["SPLITS", "synthesize_catalog"]

SPLITS = ("train", "validation", "test")
HELD_OUT = (0.1, 0.3)  # shares of validation and test
FAMILY = 4  # products that differ from one of them in one respect
# Products: with fewer, the words of the held-out ones might not all be in training.
MIN, MAX = 200, 10_000


def synthesize_catalog(
    *, language: Language = "en", products: int = 480, views: int = 4, seed: int = 0, split: str = "train"
) -> ItemDataset:
    """Draw one split of the catalog.

    Every row is one view of a product, a PNG of 64x64 pixels, with two captions of its own. The attributes
    ``object``, ``color``, ``pattern``, ``accent`` and ``material`` have English values in both languages. What was
    drawn once is kept in the cache of this user.

    Args:
        language: Language of the titles, ``en`` or ``zh``.
        products: Number of products in all splits together.
        views: Images of each product, which differ in position, background and light.
        seed: Seed of everything random.
        split: ``train``, ``validation``, ``test`` or ``all``.

    Raises:
        UnknownSplit: There is no such split.
        UnknownName: There is no such language.
        ConfigError: Too few or too many products, or no view.
    """
    if split not in (*SPLITS, "all"):
        raise UnknownSplit("split of the synthetic catalog", split, (*SPLITS, "all"))
    if language not in get_args(Language):
        raise UnknownName("language of the synthetic catalog", language, get_args(Language))
    if views < 1:
        raise ConfigError(f"views {views} is not possible; give 1 or more")
    if not MIN <= products <= MAX:
        raise ConfigError(f"products {products} is not possible; give {MIN} to {MAX}")
    asked = {"language": language, "products": products, "views": views, "seed": seed, "split": split}
    rows = kept_rows(asked, lambda: _drawn(products, seed, split, language, views))
    return ItemDataset.from_rows(rows, card="synthetic" if language == "en" else f"synthetic_{language}", split=split)


def _drawn(products: int, seed: int, split: str, language: Language, views: int) -> Iterator[Item]:
    splits = _choose_products(products, seed)
    for name in SPLITS:
        for spec in splits[name] if split in (name, "all") else ():
            yield from _draw_product(spec, language, views, seed)


def _choose_products(count: int, seed: int) -> dict[str, list[ProductSpec]]:
    """The products of each split; a family is never divided."""
    rng = np.random.default_rng(seed)
    families: list[list[ProductSpec]] = []
    known: set[ProductSpec] = set()
    while len(known) < count:
        family = _family(rng, min(FAMILY, count - len(known)), known)
        families.append(family)
        known.update(family)

    # A family that shows an attribute value for the first time goes to the end of the line: to training.
    seen: set[str] = set()
    first: list[list[ProductSpec]] = []
    others: list[list[ProductSpec]] = []
    for family in families:
        values = {value for spec in family for value in asdict(spec).values()}
        (others if values <= seen else first).append(family)
        seen |= values
    line = [spec for family in others + first for spec in family]
    ends = [round(count * share / FAMILY) * FAMILY for share in HELD_OUT]
    return {
        "validation": line[: ends[0]],
        "test": line[ends[0] : ends[0] + ends[1]],
        "train": line[ends[0] + ends[1] :],
    }


def _family(rng: np.random.Generator, size: int, known: set[ProductSpec]) -> list[ProductSpec]:
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


def _random_look(rng: np.random.Generator) -> ProductSpec:
    name = _pick(OBJECTS, rng)
    color, pattern = _pick(COLORS, rng), _pick(PATTERNS, rng)
    return ProductSpec(name, color, pattern, _accent(color, pattern, rng), _pick(MATERIALS[OBJECTS[name]], rng))


def _sibling(head: ProductSpec, rng: np.random.Generator) -> ProductSpec:
    """A product that differs from `head` in one attribute, or has its color and accent exchanged."""
    other = _random_look(rng)
    match _pick(("object", "color", "pattern", "accent", "material", "exchange"), rng):
        case "object" if OBJECTS[other.object] == OBJECTS[head.object]:
            return replace(head, object=other.object)
        case "color" if head.accent == "none" or _differ(other.color, head.accent):
            return replace(head, color=other.color)
        case "pattern":
            keeps = head.accent != "none" and other.pattern != "plain"
            accent = head.accent if keeps else _accent(head.color, other.pattern, rng)
            return replace(head, pattern=other.pattern, accent=accent)
        case "accent":
            return replace(head, accent=_accent(head.color, head.pattern, rng))
        case "material" if OBJECTS[other.object] == OBJECTS[head.object]:
            return replace(head, material=other.material)
        case "exchange" if head.accent != "none":
            return replace(head, color=head.accent, accent=head.color)
    return head


def _accent(color: str, pattern: str, rng: np.random.Generator) -> str:
    """The color of a pattern on a ground of `color`."""
    if pattern == "plain":
        return "none"
    return _pick([accent for accent in COLORS if _differ(accent, color)], rng)


def _differ(one: str, other: str) -> bool:
    """Whether two colors can be told apart side by side, under any light."""
    return sum(abs(a - b) for a, b in zip(COLORS[one], COLORS[other], strict=True)) >= 180


def _pick(choices: Iterable[str], rng: np.random.Generator) -> str:
    ordered = tuple(choices)
    return ordered[int(rng.integers(len(ordered)))]


def _draw_product(spec: ProductSpec, language: Language, views: int, seed: int) -> Iterator[Item]:
    """The rows of one product; they depend on the product only, not on what else is in the catalog."""
    name = "-".join(value.replace(" ", "-") for value in asdict(spec).values() if value != "none")
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
        yield Item(
            id=f"{name}-{view}",
            product_id=name,
            texts=(title(spec, language, words), title(spec, language, words)),
            image=encode_png(render_view(spec, shared, own)),
            attributes=asdict(spec),
        )
