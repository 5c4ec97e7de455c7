"""Commands on data: check a catalog, draw one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from dualtower.config import to_json
from dualtower.errors import DataError, SourceError

__all__ = ["Data"]


@dataclass(frozen=True)
class Check:
    """Read a whole catalog and report what is wrong or worth knowing: broken images, duplicates, leakage."""

    card: Positional[Path]
    """Data card of the catalog."""
    source: Annotated[str | None, arg(name="data.source")] = None
    """Folder or Hub dataset to read instead of the card's own source."""
    json: Path | None = None
    """Write the findings to this file."""
    strict: bool = False
    """Exit with status 1 where rows cannot be used, images stand twice, or splits share something."""

    def run(self) -> None:
        from dualtower.curation.check import check_card
        from dualtower.data.cards import load_card
        from dualtower.files import write_text_atomically

        report = check_card(load_card(self.card), source=self.source)
        print(report.to_markdown())
        if self.json:
            write_text_atomically(self.json, to_json(report.to_dict(), indent=2))
        if self.strict and (problems := report.problems()):
            raise DataError(f"{report.card}: {'; '.join(problems)}")


@dataclass(frozen=True)
class Synthesize:
    """Write the synthetic catalog as a folder of images with metadata.jsonl: an example of a catalog of your own."""

    folder: Positional[Path]
    """New folder for the synthetic catalog."""
    language: Literal["en", "zh"] = "en"
    """Language of the titles."""
    split: str = "train"
    """Part to write: train, validation, test or all."""

    def run(self) -> None:
        from dualtower.data.synthetic.catalog import synthesize_catalog

        items = synthesize_catalog(language=self.language, split=self.split)
        if self.folder.exists():
            raise SourceError(f"{self.folder} exists already; name a new folder")
        self.folder.mkdir(parents=True)
        with (self.folder / "metadata.jsonl").open("w", encoding="utf-8") as stream:
            for item in items:
                assert isinstance(item.image, bytes)
                (self.folder / f"{item.id}.png").write_bytes(item.image)
                row = {"file_name": f"{item.id}.png", "id": item.id, "product_id": item.product_id}
                row |= {"title": item.texts[0], **item.attributes}
                stream.write(to_json(row) + "\n")
        print(f"{len(items)} images with titles in {self.folder}")


@dataclass(frozen=True)
class Data:
    """Check a catalog, or write the synthetic one to disk."""

    action: Annotated[Check, subcommand("check")] | Annotated[Synthesize, subcommand("synthesize")]

    def run(self) -> None:
        self.action.run()
