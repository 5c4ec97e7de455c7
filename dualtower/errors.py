"""Every error that dualtower raises on purpose, as one tree.

::

    DualTowerError
    ├── UnknownName             a name that is not in a known set (tower, loss, split, key ...)
    │   ├── UnknownTower
    │   ├── UnknownLoss
    │   ├── UnknownSplit
    │   └── UnknownKey
    ├── ConfigError             a value that a setting cannot take
    ├── DataError               the catalog, not the code, is at fault
    │   ├── CardError           a data card that cannot be read or does not fit its source
    │   ├── SourceError         a source that is missing, empty or unreadable
    │   ├── RowError            one bad row: names file, row and reason
    │   │   └── BrokenImage
    │   ├── UnknownRow          ids that a catalog does not hold
    │   └── QrelsError          a relevance file that does not fit the gallery
    ├── ModelFolderError        a model folder with a missing, extra or unfitting part
    ├── CatalogError          a catalog folder that is missing, broken or of another model
    ├── CursorError             a cursor that is broken or belongs to another search
    ├── FilterError             a filter that cannot be read, or names what the catalog lacks
    ├── CheckpointError         a checkpoint that is broken or belongs to another config
    ├── CollapsedRun            training ended with embeddings that tell nothing apart any more
    ├── NonFiniteLoss           training ran into NaN or infinity and stopped
    └── MissingExtra            an optional dependency is not installed

A message says what was given, what is allowed, and what to type.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BrokenImage",
    "CardError",
    "CatalogError",
    "CheckpointError",
    "CollapsedRun",
    "ConfigError",
    "CursorError",
    "DataError",
    "DualTowerError",
    "FilterError",
    "MissingExtra",
    "ModelFolderError",
    "NonFiniteLoss",
    "QrelsError",
    "RowError",
    "SourceError",
    "UnknownKey",
    "UnknownLoss",
    "UnknownName",
    "UnknownRow",
    "UnknownSplit",
    "UnknownTower",
    "brief",
    "did_you_mean",
    "system_message",
]


def brief(value: object, most: int = 120) -> str:
    """The text of a value or of another library's error on one line of at most `most` characters, for messages."""
    line = " ".join(str(value).split())
    return line if len(line) <= most else f"{line[: most - 4]} ..."


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known: `` Did you mean 'name'?``, or nothing where none is near."""
    nearest = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.5)
    return f" Did you mean {brief(nearest[0])!r}?" if nearest else ""


class DualTowerError(Exception):
    """Base of all errors that dualtower raises on purpose."""


class UnknownName(DualTowerError):
    """A name outside its known set; the message lists the set and the nearest name.

    Args:
        what: What the name stands for, such as ``"text tower"``.
        given: The name as it was given.
        known: All names that would have been right.
        hint: A sentence to add at the end.
    """

    def __init__(self, what: str, given: object, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        shown = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
        message = f"no {what} {given!r}; known: {shown or '(none)'}.{did_you_mean(given, names)}"
        super().__init__(f"{message} {hint}".rstrip())


class UnknownTower(UnknownName):
    """No tower of that name."""


class UnknownLoss(UnknownName):
    """No loss of that name."""


class UnknownSplit(UnknownName):
    """The data card has no split of that name."""


class UnknownKey(UnknownName):
    """A config file or data card holds a key that does not exist."""


class ConfigError(DualTowerError):
    """A setting has a value that it cannot take."""


class DataError(DualTowerError):
    """The catalog, not the code, is at fault."""


class CardError(DataError):
    """A data card cannot be read, or names a column that its source lacks."""


class SourceError(DataError):
    """A data source is missing, empty or unreadable."""


class RowError(DataError):
    """One row cannot be used.

    Args:
        where: File or dataset the row is in.
        row: Its id or number there.
        reason: What is wrong with it.
    """

    def __init__(self, where: str, row: object, reason: str) -> None:
        self.where, self.row, self.reason = where, row, reason
        super().__init__(f"{where}, row {brief(row, 80)}: {reason}")

    def __reduce__(self) -> tuple[type, tuple[str, object, str]]:  # data-loader workers pickle their errors
        return type(self), (self.where, self.row, self.reason)


class BrokenImage(RowError):
    """The image of one row is missing, truncated, too large or not an image."""


class UnknownRow(DataError):
    """A catalog does not hold some rows.

    Args:
        ids: Their ids, at least one.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = list(ids)
        more = f" (and {len(self.ids) - 1:,} others)" if len(self.ids) > 1 else ""
        super().__init__(f"no row {self.ids[0]!r}{more} in this catalog")


class QrelsError(DataError):
    """A relevance file is malformed or names ids that the gallery lacks."""


class ModelFolderError(DualTowerError):
    """A model folder has a missing, extra or unfitting file or weight."""


class CatalogError(DualTowerError):
    """A catalog folder is missing, broken, busy, or belongs to another model."""


class CursorError(DualTowerError):
    """A cursor is broken, or belongs to another search."""


class FilterError(DualTowerError):
    """A filter cannot be read, or names an attribute or a value that does not fit the catalog."""


class CheckpointError(DualTowerError):
    """A checkpoint is broken or belongs to another config."""


class CollapsedRun(DualTowerError):
    """A training has ended with embeddings that are all alike; what it made is saved and reported."""


class NonFiniteLoss(DualTowerError):
    """The loss, its gradient or the weights became NaN or infinite; training stopped, and nothing of it was saved."""


class MissingExtra(DualTowerError, ImportError):
    """An optional dependency is not installed.

    Args:
        package: The package that could not be imported.
        extra: The extra of dualtower that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f'{package} is not installed; type: pip install "dualtower[{extra}]"')


def system_message(error: OSError) -> str:
    """One line about what the system refused, such as a file that is a folder or a full disk, and where."""
    if error.strerror is None:
        return f"{type(error).__name__}: {error}"
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{type(error).__name__}: {error.strerror}" + (f": {' -> '.join(names)}" if names else "")
