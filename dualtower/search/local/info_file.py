"""``catalog.json``: what a catalog is. Its presence says that a folder is one; the database holds the same."""

from __future__ import annotations

import json
from pathlib import Path

from dualtower.config import from_dict, to_dict
from dualtower.errors import CatalogError, ConfigError
from dualtower.files import write_text_atomically
from dualtower.search.local.connection_pool import Database
from dualtower.search.records import FORMAT, CatalogInfo

__all__ = ["ABOUT", "info_json", "mend_info", "read_info"]

ABOUT = "catalog.json"
_EARLIER = "catalogue.json"
_ANEW = "index it anew: `dualtower index MODEL --out NEW_FOLDER`"


def info_json(info: CatalogInfo) -> str:
    """The content of the file."""
    return json.dumps(to_dict(info), indent=2, ensure_ascii=False)


def read_info(folder: Path) -> CatalogInfo:
    """What the catalog in a folder is.

    Raises:
        CatalogError: There is none, or it is broken or of another format.
    """
    path = folder / ABOUT
    if (folder / _EARLIER).exists():
        raise CatalogError(f"{folder} was written by an earlier version of dualtower; {_ANEW}")
    if not path.exists():
        raise CatalogError(f"no catalog in {folder}; `dualtower index MODEL --out {folder}` makes one")
    try:
        info = from_dict(CatalogInfo, json.loads(path.read_text(encoding="utf-8")), where=str(path))
    except (ValueError, ConfigError) as error:
        raise CatalogError(f"{path} is broken: {error}") from error
    if info.format != FORMAT:
        raise CatalogError(f"{path} is of format {info.format}, this version reads {FORMAT}; {_ANEW}")
    return info


def mend_info(folder: str | Path) -> bool:
    """Write a lost or altered file anew, by what the database says; returns whether it had to be.

    Raises:
        CatalogError: There is no database in the folder, or none that tells.
    """
    path, database = Path(folder) / ABOUT, Path(folder) / "rows.sqlite"
    if not database.exists():
        raise CatalogError(f"no catalog in {folder}; `dualtower index MODEL --out {folder}` makes one")
    opened = Database(database)
    try:
        content = str(opened.read("SELECT info FROM about")[0][0])
    finally:
        opened.close()
    if path.exists() and path.read_bytes() == content.encode():
        return False
    write_text_atomically(path, content)
    return True
