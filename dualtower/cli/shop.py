"""Commands on a searchable catalogue: serve it, sort it, look for what does not belong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from dualtower.cli.catalogue import CARD, open_local
from dualtower.cli.placing import say_where
from dualtower.errors import ConfigError

__all__ = ["Classify", "Outliers", "Serve"]


@dataclass(frozen=True)
class Classify:
    """Give every row of a catalogue the label that its picture fits best, without any training for it."""

    catalogue: Positional[Path]
    """Folder of the catalogue."""
    labels: tuple[str, ...] = ()
    """Labels to choose from; or name an attribute."""
    attribute: str | None = None
    """Take the labels from this attribute's values, and report how often they agree with it."""
    prompt: str | None = None
    """How a label becomes a text, such as "a photo of {}"; default what the data card says."""
    out: Path | None = None
    """Write id, label and score of every row to this CSV file."""
    model: str | None = None
    """Where the model lies now, if it has moved since the catalogue was made."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""

    def run(self) -> None:
        from dualtower.retrieval.finder import open_finder
        from dualtower.retrieval.labels import classify, write_labels

        if bool(self.labels) == bool(self.attribute):
            raise ConfigError("name either --labels or an --attribute whose values are the labels")
        store, model = open_local(self.catalogue), open_finder(self.catalogue, self.model, device=self.device).model
        say_where(model)
        prompt = self.prompt or self._prompt_of_card()
        found = classify(store, model, labels=self.labels, attribute=self.attribute, prompt=prompt)
        print(found.table())
        if self.out:
            write_labels(found, self.out)

    def _prompt_of_card(self) -> str:
        from dualtower.data.cards import load_card

        card = self.catalogue / CARD
        return load_card(card).prompts.get(self.attribute or "", "{}") if card.exists() else "{}"


@dataclass(frozen=True)
class Outliers:
    """Rank rows that look wrong: pictures unlike all others, titles that do not match their picture or its like."""

    catalogue: Positional[Path]
    """Folder of the catalogue."""
    out: Path
    """Folder to write report.md with pictures into."""
    number: int = 50
    """Number of rows to list, the oddest first."""
    neighbours: int = 10
    """How many nearest rows a row is compared with."""

    def run(self) -> None:
        from dualtower.retrieval.outliers import find_outliers, write_outliers

        store = open_local(self.catalogue)
        found = find_outliers(store, neighbours=self.neighbours)
        print(write_outliers(found, store, self.out, number=self.number))


@dataclass(frozen=True)
class Serve:
    """Serve a catalogue: an HTTP API, and a page to search it with."""

    catalogue: Positional[str]
    """Folder of the catalogue, or milvus://host:port/name."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is this machine only."""
    port: int = 8000
    """Port to listen on."""
    token_file: Path | None = None
    """File with the token that writers must send; without it nobody may write."""
    model: str | None = None
    """Where the model lies now, if it has moved since the catalogue was made."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""
    queue: int = 256
    """Questions that may wait; further ones are turned away."""
    rerank: int | None = None
    """Put the best N rows of each question in words in order again with the re-ranker of the model, at most 100."""

    def run(self) -> None:
        from dualtower.serving.server import ServerConfig, serve

        serve(
            ServerConfig(
                catalogue=self.catalogue,
                host=self.host,
                port=self.port,
                token_file=self.token_file,
                model=self.model,
                device=self.device,
                queue=self.queue,
                rerank=self.rerank,
            )
        )
