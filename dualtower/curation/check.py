"""What a catalog holds and what is wrong with it, before a model is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.config import to_dict
from dualtower.data.cards import DataCard
from dualtower.data.image_columns import digest
from dualtower.data.items import ItemDataset
from dualtower.data.loading import read_split
from dualtower.data.memory import release_unused_memory
from dualtower.data.rows.check import shared_codes
from dualtower.data.rows.table import ID, RowTable, codes_of
from dualtower.data.splits import split_names
from dualtower.data.transforms.tokenizer import normalize_title
from dualtower.errors import BrokenImage
from dualtower.markdown import markdown_table
from dualtower.types import product_code

__all__ = ["AttributeValues", "CheckReport", "Leak", "Repeated", "SplitCheck", "check_card"]

OVER_LONG = 1_000  # characters; a tokenizer cuts far earlier, so that most of such a text is never read
SHOWN = 10  # bad rows and attribute values in the report
NOTHING = -1  # in place of the code of an image or a text that is not there


@dataclass(frozen=True)
class SplitCheck:
    """One split.

    Attributes:
        split: Its name.
        rows: Usable rows.
        products: Different products among them.
        left_out: Reason -> number of rows that cannot be used.
        over_long: Usable rows with a text of more than 1,000 characters.
    """

    split: str
    rows: int
    products: int
    left_out: dict[str, int]
    over_long: int


@dataclass(frozen=True)
class Repeated:
    """Values that stand in more than one row.

    Attributes:
        values: How many values do.
        rows: In how many rows they stand together.
        largest: Rows of the most frequent one.
        example: A row id of the most frequent one.
    """

    values: int
    rows: int
    largest: int
    example: str


@dataclass(frozen=True)
class Leak:
    """What two splits share: different products, images (byte for byte) and titles."""

    splits: tuple[str, str]
    products: int
    images: int
    titles: int


@dataclass(frozen=True)
class AttributeValues:
    """One attribute: how many different values, rows without one, and the most frequent values."""

    name: str
    different: int
    missing: int
    top: list[tuple[str, int]]


@dataclass(frozen=True)
class CheckReport:
    """The state of a catalog.

    Attributes:
        card: Name of the card.
        splits: Rows per split.
        products: Products with several rows, over all splits.
        titles: Equal first texts, character by character, over all splits.
        images: Byte-identical images, over all splits.
        duplicate_ids: Ids that stand in more than one split. (Those within one are among the rows left out.)
        leaks: What each pair of splits shares.
        attributes: Values of the attributes, over all splits.
        bad_rows: The first rows that were left out, with their reasons.
    """

    card: str
    splits: list[SplitCheck]
    products: Repeated
    titles: Repeated
    images: Repeated
    duplicate_ids: int
    leaks: list[Leak]
    attributes: list[AttributeValues]
    bad_rows: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold."""
        return to_dict(self)

    def problems(self) -> list[str]:
        """What makes figures on this catalog doubtful: rows left out, duplicates, and what two splits share."""
        left_out = sum(sum(split.left_out.values()) for split in self.splits)
        found = [
            (left_out, "rows cannot be used"),
            (self.duplicate_ids, "ids stand in more than one split"),
            (self.images.values, "groups of byte-identical images"),
        ]
        for leak in self.leaks:
            shared = f"shared by {leak.splits[0]} and {leak.splits[1]}"
            found += [(getattr(leak, what), f"{what} {shared}") for what in ("products", "images", "titles")]
        return [f"{count:,} {what}" for count, what in found if count]

    def to_markdown(self) -> str:
        """A short report for people."""
        reasons = sorted({reason for split in self.splits for reason in split.left_out})
        head = ["split", "rows", "products", *reasons, f"text over {OVER_LONG:,} characters"]
        cells = [
            [s.split, s.rows, s.products, *(s.left_out.get(r, 0) for r in reasons), s.over_long] for s in self.splits
        ]
        lines = [f"# {self.card}", "", markdown_table(head, cells)]
        lines += ["", _repeated_line("products have several rows", self.products)]
        lines += [_repeated_line("titles are shared", self.titles)]
        lines += [_repeated_line("groups of byte-identical images", self.images)]
        lines += [f"- {self.duplicate_ids:,} ids stand in more than one split"]
        if self.leaks:
            shared = [[" and ".join(leak.splits), leak.products, leak.images, leak.titles] for leak in self.leaks]
            table = markdown_table(["splits", "products", "images", "titles"], shared)
            lines += ["", "Shared between splits:", "", table]
        if self.attributes:
            rows = [[a.name, a.different, a.missing, _top(a.top)] for a in self.attributes]
            table = markdown_table(["name", "values", "missing", "most frequent"], rows, left=(0, 3))
            lines += ["", "Attributes:", "", table]
        if self.bad_rows:
            lines += ["", "Rows left out:", "", *(f"- {line}" for line in self.bad_rows)]
            hidden = sum(sum(s.left_out.values()) for s in self.splits) - len(self.bad_rows)
            lines += [f"- and {hidden:,} more"] if hidden else []
        return "\n".join(lines) + "\n"


def check_card(card: DataCard, *, source: str | Path | None = None) -> CheckReport:
    """Read every row and decode every image of a catalog.

    Args:
        card: See `dualtower.data.cards.load_card`.
        source: Local file or folder, or ``hub:user/name``, to read in place of the card's own source.

    Raises:
        SourceError: The source is missing, empty or unreadable.
        CardError: The card does not fit its source.
    """
    splits = split_names(card, source=source)
    parts = [read_split(card, split, source=source, on_error="skip") for split in splits]
    release_unused_memory()
    images = [_image_codes(part) for part in parts]
    splits_checked = [_check_split(part) for part in parts]
    release_unused_memory()

    def id_of_row(row: int) -> str:
        return next(str(part.columns.ids[row - start]) for part, start in _starts(parts) if row < start + len(part))

    def id_of_image(place: int) -> str:
        for part in parts:
            if place < len(part):
                return str(part.columns.ids[place])
            if (extra := place - len(part)) < len(part.extra_images):
                return str(part.columns.ids[int(part.extra_images.rows[extra])])
            place = extra - len(part.extra_images)
        raise IndexError(place)

    return CheckReport(
        card=card.name,
        splits=splits_checked,
        products=_repeated(_whole([part.codes for part in parts]), id_of_row),
        titles=_repeated(_whole([_title_codes(part) for part in parts]), id_of_row),
        images=_repeated(_whole(images), id_of_image),
        duplicate_ids=len(shared_codes(_whole([part.columns.codes(ID) for part in parts]))),
        leaks=_leaks(parts, images),
        attributes=[_attribute(name, parts) for name in parts[0].columns.attributes],
        bad_rows=[str(error) for part in parts for error in part.skipped][:SHOWN],
    )


def _starts(parts: Sequence[ItemDataset]) -> list[tuple[ItemDataset, int]]:
    """Each part, and the number of rows before it."""
    return list(zip(parts, np.cumsum([0, *map(len, parts)]).tolist(), strict=False))


def _whole(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int64), *parts])


def _check_split(products: ItemDataset) -> SplitCheck:
    reasons = Counter(_kind(error) for error in products.skipped)
    return SplitCheck(
        split=products.split,
        rows=len(products),
        products=len(np.unique(products.codes)),
        left_out=dict(reasons),
        over_long=sum(any(len(text) > OVER_LONG for text in texts) for texts in products.columns.texts),
    )


def _kind(error: Any) -> str:
    """A reason that rows have in common."""
    if isinstance(error, BrokenImage):
        return "missing image" if error.reason.startswith("no image") else "broken image"
    return str(error.reason)


def _title_codes(products: ItemDataset) -> np.ndarray:
    """A number for the first text of each row, int64; NOTHING without one."""
    codes = codes_of(texts[0] if texts else "" for texts in products.columns.texts)
    codes[codes == product_code("")] = NOTHING
    return codes


def _image_codes(products: ItemDataset) -> np.ndarray:
    """A number for the bytes of each image, the first ones before the further ones, int64; NOTHING without bytes."""
    images = chain(products.images, products.extra_images.images)
    count = len(products) + len(products.extra_images)
    digests = (digest(image)[:8] for image in images)
    return np.fromiter((int.from_bytes(d, "big") >> 1 if d else NOTHING for d in digests), np.int64, count)


def _repeated(codes: np.ndarray, example: Callable[[int], str]) -> Repeated:
    """Codes that stand there several times; `example` is the id of the row at a place among them."""
    found, counts = np.unique(codes, return_counts=True)
    several = (counts > 1) & (found != NOTHING)
    if not several.any():
        return Repeated(0, 0, 0, "")
    found, counts = found[several], counts[several]
    largest = int(counts.max())
    first = int(np.argmax(np.isin(codes, found[counts == largest])))
    return Repeated(len(counts), int(counts.sum()), largest, example(first))


def _leaks(parts: Sequence[ItemDataset], images: Sequence[np.ndarray]) -> list[Leak]:
    """What each two of the parts share."""
    if len(parts) < 2:
        return []
    products = [np.unique(part.codes) for part in parts]
    images = [np.unique(codes[codes != NOTHING]) for codes in images]
    titles = [np.unique(codes_of(normalize_title(t) for texts in p.columns.texts for t in texts)) for p in parts]

    def shared(of: Sequence[np.ndarray], a: int, b: int) -> int:
        return len(np.intersect1d(of[a], of[b], assume_unique=True))

    return [
        Leak(
            splits=(parts[a].split, parts[b].split),
            products=shared(products, a, b),
            images=shared(images, a, b),
            titles=shared(titles, a, b),
        )
        for a, b in combinations(range(len(parts)), 2)
    ]


def _attribute(name: str, parts: Sequence[ItemDataset]) -> AttributeValues:
    """Values counted by their codes: an attribute may be as different as the rows are many."""
    codes = _whole([codes_of(map(_value_text, part.columns.attributes[name])) for part in parts])
    found, first, counts = np.unique(codes, return_index=True, return_counts=True)
    known = found != product_code("")
    missing = int(counts[~known].sum())
    first, counts = first[known], counts[known]
    top = np.lexsort((first, -counts))[:SHOWN]  # of equally frequent ones the first
    values = RowTable.concatenate([part.columns for part in parts]).attributes[name]
    shown = [(_value_text(values[int(first[i])]), int(counts[i])) for i in top]
    return AttributeValues(name, len(counts), missing, shown)


def _value_text(value: Any) -> str:
    """The text of a value; half a character, which JSON may say, by its number."""
    return "" if value is None or value != value else str(value).encode(errors="backslashreplace").decode()


def _repeated_line(what: str, found: Repeated) -> str:
    line = f"- {found.values:,} {what}"
    return line + (f": {found.rows:,} rows, the largest {found.largest} (row {found.example})" if found.values else "")


def _top(values: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{value} {count:,}" for value, count in values[:5])
