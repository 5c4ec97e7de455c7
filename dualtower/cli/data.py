"""Commands on data: check a catalogue, draw one."""

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
    """Read a whole catalogue and report what is wrong or worth knowing: broken pictures, duplicates, leakage."""

    card: Positional[Path]
    """Data card of the catalogue."""
    source: Annotated[str | None, arg(name="data.source")] = None
    """Folder or Hub dataset to read instead of the card's own source."""
    json: Path | None = None
    """Write the findings to this file."""
    strict: bool = False
    """Exit with status 1 where rows cannot be used, pictures stand twice, or splits share something."""

    def run(self) -> None:
        from dualtower.data.cards import load_card
        from dualtower.data.check import check_card
        from dualtower.files import write_text_atomically

        report = check_card(load_card(self.card), source=self.source)
        print(report.to_markdown())
        if self.json:
            write_text_atomically(self.json, to_json(report.to_dict(), indent=2))
        if self.strict and (problems := report.problems()):
            raise DataError(f"{report.card}: {'; '.join(problems)}")


@dataclass(frozen=True)
class Draw:
    """Write the drawn catalogue as a folder of pictures with metadata.jsonl: an example of a catalogue of your own."""

    folder: Positional[Path]
    """New folder for the drawn catalogue."""
    language: Literal["en", "zh"] = "en"
    """Language of the titles."""
    split: str = "train"
    """Part to write: train, validation, test or all."""

    def run(self) -> None:
        from dualtower.data.drawn import draw_catalogue

        products = draw_catalogue(language=self.language, split=self.split)
        if self.folder.exists():
            raise SourceError(f"{self.folder} exists already; name a new folder")
        self.folder.mkdir(parents=True)
        with (self.folder / "metadata.jsonl").open("w", encoding="utf-8") as stream:
            for product in products:
                assert isinstance(product.image, bytes)
                (self.folder / f"{product.id}.png").write_bytes(product.image)
                row = {"file_name": f"{product.id}.png", "id": product.id, "product_id": product.product_id}
                row |= {"title": product.texts[0], **product.attributes}
                stream.write(to_json(row) + "\n")
        print(f"{len(products)} pictures with titles in {self.folder}")


@dataclass(frozen=True)
class Data:
    """Check a catalogue, or write the drawn one to disk."""

    action: Annotated[Check, subcommand("check")] | Annotated[Draw, subcommand("draw")]

    def run(self) -> None:
        self.action.run()
