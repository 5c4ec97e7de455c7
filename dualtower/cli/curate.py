"""`dualtower classify` and `dualtower outliers`: what stands in a catalog, and what does not belong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from dualtower.cli.catalog import CARD, open_local
from dualtower.cli.placing import say_where
from dualtower.errors import ConfigError

__all__ = ["Classify", "Outliers"]


@dataclass(frozen=True)
class Classify:
    """Give every row of a catalog the label that its image fits best, without any training for it."""

    catalog: Positional[Path]
    """Folder of the catalog."""
    labels: tuple[str, ...] = ()
    """Labels to choose from; or name an attribute."""
    attribute: str | None = None
    """Take the labels from this attribute's values, and report how often they agree with it."""
    prompt: str | None = None
    """How a label becomes a text, such as "a photo of {}"; default what the data card says."""
    out: Path | None = None
    """Write id, label and score of every row to this CSV file."""
    model: str | None = None
    """Where the model lies now, if it has moved since the catalog was made."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""

    def run(self) -> None:
        from dualtower.curation.zero_shot import classify, write_labels
        from dualtower.search.engine import open_engine

        if bool(self.labels) == bool(self.attribute):
            raise ConfigError("name either --labels or an --attribute whose values are the labels")
        store, model = open_local(self.catalog), open_engine(self.catalog, self.model, device=self.device).model
        say_where(model)
        prompt = self.prompt or self._prompt_of_card()
        found = classify(store, model, labels=self.labels, attribute=self.attribute, prompt=prompt)
        print(found.table())
        if self.out:
            write_labels(found, self.out)

    def _prompt_of_card(self) -> str:
        from dualtower.data.cards import load_card

        card = self.catalog / CARD
        return load_card(card).prompts.get(self.attribute or "", "{}") if card.exists() else "{}"


@dataclass(frozen=True)
class Outliers:
    """Rank rows that look wrong: images unlike all others, titles that do not match their image or its like."""

    catalog: Positional[Path]
    """Folder of the catalog."""
    out: Path
    """Folder to write report.md with images into."""
    number: int = 50
    """Number of rows to list, the oddest first."""
    neighbors: int = 10
    """How many nearest rows a row is compared with."""

    def run(self) -> None:
        from dualtower.curation.outliers import find_outliers, write_outliers

        store = open_local(self.catalog)
        found = find_outliers(store, neighbors=self.neighbors)
        print(write_outliers(found, store, self.out, number=self.number))
