"""Data cards: one Markdown file per catalog that the loader and people read alike.

The YAML front matter names the source and maps its columns once to
``id, product_id, text, image, attributes``; the prose below it is for people. A card looks like this::

    ---
    name: shop
    title: The winter catalog
    source: {path: ../shop}
    columns:
      id: sku
      product_id: normalized_text
      text: "{brand} {title}"
      image: photo
      attributes: [color]
    splits: {by_hash: {column: product_id, validation: 0.05, test: 0.1}}
    license: our own
    languages: [en]
    ---
    Photos from the studio, one row per photo.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from dualtower.config import from_dict
from dualtower.errors import CardError, ConfigError, did_you_mean

__all__ = [
    "NORMALIZED_TEXT",
    "Baseline",
    "CardSource",
    "Columns",
    "DataCard",
    "HashSplit",
    "QueryColumns",
    "Splits",
    "load_card",
]

NORMALIZED_TEXT = "normalized_text"  # as `product_id`: rows with the same title are the same product
FOLDER = "data_cards"
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class CardSource:
    """Where the rows come from: a Hub dataset, a path or the drawing code.

    A source that is given to the loader replaces it.

    Attributes:
        hub: Dataset id on the Hub, ``user/name``.
        revision: Branch, tag or commit there.
        config: Configuration ("subset") there.
        path: File or folder, relative to the card.
        builder: How local files are read, where they leave a doubt: parquet, csv, json, imagefolder or webdataset; or
            ``images``, files that are images and nothing else.
        synthetic: Language of the synthetic catalog.
        options: Passed on to the `datasets` builder or to `synthesize_catalog`.
    """

    hub: str | None = None
    revision: str | None = None
    config: str | None = None
    path: str | None = None
    builder: str | None = None
    synthetic: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in ("hub", "path", "synthetic") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"a source has one of hub, path and synthetic, not {' and '.join(given)}")


@dataclass(frozen=True)
class Columns:
    """Which column of the source becomes what. ``a.b`` is field b of a column a that holds records.

    Attributes:
        text: A column, a template such as ``"{brand} {title}"``, or several of them, each one caption. None for a
            catalog of images alone.
        image: Column with encoded bytes, a path relative to the source's folder, or a `datasets` Image; or with
            lists of them; or several such columns, in the order in which a row's images count. None for a catalog
            without images.
        id: Column with a unique id. None: rows are numbered (``train-0``, ``train-1`` ...).
        product_id: Column that is equal for rows of one product, or ``normalized_text``: equal (first) texts
            are one product. None: every row is a product of its own.
        attributes: Further columns to keep.
        numeric: Those of them that are quantities, such as a price; the others are categories.
    """

    text: str | list[str] | None = None
    image: str | list[str] | None = None
    id: str | None = None
    product_id: str | None = None
    attributes: list[str] = field(default_factory=list)
    numeric: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if strangers := [name for name in self.numeric if name not in self.attributes]:
            raise ConfigError(f"columns.numeric names {strangers[0]!r}, which is not among columns.attributes")
        if not self.captions and not self.image_columns:
            raise ConfigError("columns names neither text nor image; a row has at least one of them")
        if self.product_id == NORMALIZED_TEXT and not self.captions:
            raise ConfigError(
                f"columns.product_id is {NORMALIZED_TEXT}, and columns names no text; name a column that is equal for "
                "rows of one product"
            )

    @property
    def captions(self) -> tuple[str, ...]:
        """The text columns and templates, as a tuple also where there is one or none."""
        if self.text is None:
            return ()
        return (self.text,) if isinstance(self.text, str) else tuple(self.text)

    @property
    def image_columns(self) -> tuple[str, ...]:
        """The columns with images, as a tuple also where there is one or none."""
        if self.image is None:
            return ()
        return (self.image,) if isinstance(self.image, str) else tuple(self.image)

    def named(self) -> dict[str, list[str]]:
        """Role -> the source columns that it needs."""
        roles: dict[str, list[str | None]] = {
            "text": [name for caption in self.captions for name in template_columns(caption)],
            "image": [*self.image_columns],
            "id": [self.id],
            "product_id": [self.product_id] if self.product_id != NORMALIZED_TEXT else [],
            "attributes": [*self.attributes],
        }
        return {role: [name for name in names if name] for role, names in roles.items()}


@dataclass(frozen=True)
class QueryColumns:
    """Attributes that hold a query to which the row is an answer, and how good an answer.

    Attributes:
        text: The query.
        id: Its id; None: equal texts are one query.
        grade: How relevant the row's product is, above 0; None: every row is relevant alike.
        grades: Value of `grade` -> number, where the column holds words.
    """

    text: str
    id: str | None = None
    grade: str | None = None
    grades: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class HashSplit:
    """Split by a hash of one column, which is the same on every machine and for rows that are added later.

    Attributes:
        column: ``product_id`` (the identity: no product stands in two splits), ``id``, or a column of the
            source.
        validation: Share of its values that go to validation.
        test: Share of its values that go to test; the rest is train.
    """

    column: str = "product_id"
    validation: float = 0.05
    test: float = 0.1

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ConfigError(
                f"splits.by_hash: validation {self.validation} and test {self.test} leave nothing to train on"
            )


@dataclass(frozen=True)
class Splits:
    """How the rows are divided.

    `named` is used where the source itself has held-out splits, and it must have all of them. A source that is one
    whole, such as a Hub dataset with nothing but ``train``, is divided by `by_hash`.

    Attributes:
        named: Split -> split of the source, the name of files without a running number, or a pattern of files
            (``"holdout-*.parquet"``). Empty: the source's splits under their own names.
        by_hash: The rule for a source without held-out splits; None: it stays as it is.
    """

    named: Mapping[str, str] = field(default_factory=dict)
    by_hash: HashSplit | None = field(default_factory=HashSplit)

    def __post_init__(self) -> None:
        if "all" in self.named:
            raise ConfigError("splits.named cannot name a split 'all', which means every row; give it another name")


@dataclass(frozen=True)
class Baseline:
    """A published result on this catalog.

    Attributes:
        model: The model's name.
        protocol: What was ranked against what.
        metrics: Metric -> value. A name says what was measured and not only what the source calls it: an MRR over the
            best ten hits is ``mrr@10``, to be held against that metric of ours.
        source: Where the figures stand.
    """

    model: str
    protocol: str
    metrics: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class DataCard:
    """One catalog: source, columns, splits, and what people should know about it.

    Attributes:
        name: Short name, as in the file's name.
        title: One line for people.
        source: Where the rows come from.
        columns: Which column becomes what.
        splits: How the rows are divided.
        queries: Graded queries that stand in the rows; None where there are none.
        license: As its publisher states it.
        languages: Languages of the texts.
        relevance: When a row is a right answer to a query.
        caveats: What makes results on this catalog doubtful or hard to compare.
        baselines: Published results.
        prompts: Attribute -> how one of its values becomes a text, ``{}`` standing for the value; for zero-shot labels.
        augmentation: Attribute `by`, its values -> presets, and the `default`: ``{by: masterCategory, Apparel: apparel,
            default: product}``; for runs with ``train.augmentation card``.
        verified: Whether the card was run against its source.
        note: How it was verified, or why not.
        body: The Markdown below the front matter.
        path: The card's file, or None for a card made in Python.
    """

    name: str
    columns: Columns
    title: str = ""
    source: CardSource = field(default_factory=CardSource)
    splits: Splits = field(default_factory=Splits)
    queries: QueryColumns | None = None
    license: str = "not stated"
    languages: list[str] = field(default_factory=list)
    relevance: str = ""
    caveats: list[str] = field(default_factory=list)
    baselines: list[Baseline] = field(default_factory=list)
    prompts: dict[str, str] = field(default_factory=dict)
    augmentation: dict[str, str] = field(default_factory=dict)
    verified: bool = False
    note: str = ""
    body: str = ""
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.queries is None:
            return
        named = (self.queries.text, self.queries.id, self.queries.grade)
        if strangers := [name for name in named if name and name not in self.columns.attributes]:
            raise ConfigError(f"queries names {strangers[0]!r}, which is not among columns.attributes")


def load_card(path_or_name: str | Path) -> DataCard:
    """Read a data card.

    Args:
        path_or_name: A card's file, or its name: ``fashion_products`` is ``data_cards/fashion_products.md``, in the
            present folder or else among the cards that come with dualtower.

    Raises:
        CardError: There is no such card, or it cannot be read; the message lists the cards that there are.
        UnknownKey: The front matter has a key that does not exist.
    """
    path = _find(Path(path_or_name))
    text = path.read_text(encoding="utf-8")
    parts = re.fullmatch(r"---\s*\n(.*?)\n---[^\S\n]*(?:\n(.*))?", text, flags=re.DOTALL)
    if parts is None:
        raise CardError(f"{path}: a data card begins with YAML between two lines of '---'")
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise CardError(f"{path}: the front matter is not YAML: {error}") from error
    try:
        card = from_dict(DataCard, values, where=path.name)
    except ConfigError as error:
        raise CardError(f"{path}: {error}") from error
    return replace(card, body=(parts[2] or "").strip(), path=path)


def template_columns(caption: str) -> list[str]:
    """Columns that a template names; a caption without braces is itself a column."""
    return PLACEHOLDER.findall(caption) or [caption]


def is_pattern(source_split: str) -> bool:
    """Whether a named split is a pattern of files, not the name of a split."""
    return any(mark in source_split for mark in "*./")


def _find(path: Path) -> Path:
    is_file = path.suffix == ".md"
    shipped = _shipped()
    places = [path if is_file else Path(FOLDER) / f"{path.name}.md"]
    if not is_file or path.parent == Path(FOLDER):  # also from a folder without cards of its own
        places.append(shipped / places[0].name)
    for place in places:
        if place.is_file():
            return place
    beside = [path.parent] if is_file else []
    folder = next((p for p in (*beside, Path(FOLDER), shipped) if _cards_in(p)), Path(FOLDER))
    known = _cards_in(folder)
    raise CardError(
        f"no data card {str(path)!r}; cards in {folder}: {', '.join(known) or '(none)'}."
        f"{did_you_mean(path.stem, known)}"
    )


def _cards_in(folder: Path) -> list[str]:
    """Names of the cards in a folder, whose other Markdown has no front matter."""
    cards = []
    for path in folder.glob("*.md"):
        with suppress(OSError), path.open("rb") as file:
            if file.read(3) == b"---":
                cards.append(path.stem)
    return sorted(cards)


def _shipped() -> Path:
    """The cards of dualtower: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    return package / FOLDER if (package / FOLDER).is_dir() else package.parent / FOLDER
