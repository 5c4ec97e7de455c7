"""`dualtower classify` and `dualtower outliers`: what stands in a catalog, and what does not belong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from dualtower.cli.catalog import CARD, open_local
from dualtower.cli.placing import say_where, to_place
from dualtower.errors import ConfigError

if TYPE_CHECKING:
    from dualtower.models.dual_tower import DualTower

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
    """Rank rows that look wrong, or find damage in photos by a model that knows clean ones.

    A catalog alone, by the method knn: images unlike all others, titles that do not match their image or its like. With
    another method, with --clean, or with a card or a folder of photos: damage, and a heat map of where it is.
    """

    images: Positional[str]
    """What to look through: folder of a catalog, a data card, or a folder of photos."""
    out: Path
    """Folder to write report.md with images into; where damage is looked for, scores.csv too."""
    method: Literal["knn", "patch", "reconstruction"] = "knn"
    """How: distance of the whole image to its nearest ones; of its worst patch (PatchCore); or what principal
    components of clean images cannot draw again."""
    clean: str | None = None
    """Images of whole products to compare with: folder of a catalog, a data card, or a folder of photos."""
    false_alarms: float = 0.01
    """Share of clean images that may count as damaged; a threshold is chosen for it on held-out clean ones."""
    model: str | None = None
    """Model folder, or user/name on the Hub; default the model of a catalog that is named."""
    split: str = "all"
    """Split to look through, where a data card is named."""
    clean_split: str = "train"
    """Split of clean images, where a data card is named."""
    source: str | None = None
    """Folder or Hub dataset to read instead of the data cards' own source."""
    max_clean: int = 3000
    """Look at no more than so many clean images, drawn at random."""
    number: int = 50
    """Number of rows to list, the oddest first."""
    neighbors: int = 10
    """How many nearest rows a row is compared with; for the method patch, 0 is one memory of patches for all."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""

    def run(self) -> None:
        from dualtower.search.store import store_exists

        alone = self.method == "knn" and self.clean is None
        if alone and (store_exists(self.images) or not (self.model or Path(self.images).is_dir())):
            self._rank_rows()
        else:
            self._find_damage()

    def _rank_rows(self) -> None:
        from dualtower.curation.outliers import find_outliers, write_outliers

        store = open_local(Path(self.images))
        found = find_outliers(store, neighbors=self.neighbors)
        print(write_outliers(found, store, self.out, number=self.number))

    def _find_damage(self) -> None:
        from dualtower.curation.damage import find_damage, open_photos, write_damage

        if self.neighbors < 0 or self.max_clean < 1 or self.number < 1:
            raise ConfigError("--neighbors must be 0 or more, --max-clean and --number 1 or more")
        model = to_place(self._model(), self.device)
        photos = open_photos(self.images, split=self.split, source=self.source)
        clean = open_photos(self.clean, split=self.clean_split, source=self.source) if self.clean else None
        found = find_damage(
            photos,
            clean,
            model,
            method=self.method,
            neighbors=self.neighbors,
            false_alarms=self.false_alarms,
            max_clean=self.max_clean,
            heat_maps=self.number,
        )
        print(write_damage(found, model.config.image_settings, self.out, number=self.number))

    def _model(self) -> DualTower:
        from dualtower.models.dual_tower import DualTower
        from dualtower.search.store import store_exists

        catalogs = [where for where in (self.images, self.clean) if where and store_exists(where)]
        if not self.model and not catalogs:
            raise ConfigError("name the model that looks at the images: --model FOLDER")
        return DualTower.from_pretrained(self.model or open_local(Path(catalogs[0])).info.model)
