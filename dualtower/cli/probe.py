"""`dualtower probe`: what models know of a label, from few labels to all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from dualtower.cli.evaluate import CardSource
from dualtower.cli.placing import to_place
from dualtower.config import to_json
from dualtower.errors import ConfigError, UnknownName

if TYPE_CHECKING:
    from dualtower.data.cards import DataCard
    from dualtower.evaluation.label_probe import LabelProbe, Vectors
    from dualtower.evaluation.label_splits import LabeledSplits
    from dualtower.models.dual_tower import DualTower

__all__ = ["Probe"]

_OF_FINETUNING = ("minutes", "epochs", "lr", "scratch", "class_balanced", "logit_adjustment", "augmentation")
_ROWS = 256


@dataclass(frozen=True)
class Probe:
    """Measure what the images of a card tell models of a label, when they learn it from a share of the labels.

    One table of models and shares: accuracy, macro-F1, and the recall of frequent and of rare classes, with intervals.
    """

    models: Positional[tuple[str, ...]]
    """Model folders, or user/name on the Hub."""
    data: CardSource
    label: str
    """Attribute of the card to predict, such as articleType."""
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Shares of the labels to learn from, above 0 and at most 1; every class keeps one label or more."""
    method: Literal["knn", "linear", "finetune"] = "knn"
    """`knn`: the vote of the nearest rows; `linear`: logistic regression on frozen embeddings; `finetune`: train the
    image tower on under a linear head."""
    draws: int = 5
    """How often each share is drawn; the figures are means."""
    baselines: bool = False
    """Also measure each architecture with random weights, and raw pixels of 16x16; for `knn` and `linear`."""
    neighbors: int = 10
    """How many rows vote, for `knn`."""
    minutes: float | None = None
    """Minutes of each fine-tuning; or give `epochs`."""
    epochs: float | None = None
    """Passes of each fine-tuning over its share of the rows."""
    lr: float | None = None
    """Peak learning rate of fine-tuning, by default 1e-3."""
    augmentation: str | None = None
    """Image augmentation preset of fine-tuning, by default `product`; `card` takes each row's from the data card."""
    class_balanced: bool = False
    """Draw all classes equally often in fine-tuning, for long tails."""
    logit_adjustment: float = 0.0
    """Factor of the log of a class's share that is added to its logit in fine-tuning, for long tails; 1 is balanced."""
    scratch: bool = False
    """Also train each architecture from fresh weights, with the same budget."""
    train_split: str = "train"
    """Split whose labels are learned."""
    split: str = "test"
    """Split to predict."""
    json: Path | None = None
    """Write the figures, those of each draw too, to this file."""
    bootstrap: int = 1000
    """Resamples behind the intervals; 0 for none."""
    batch_size: int | None = None
    """Rows embedded at a time, by default 256; in fine-tuning rows of a step, by default 64."""
    seed: int = 0
    """Seed of the draws, of the resamples and of fine-tuning."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, mps ...; auto is an accelerator where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the towers; auto is bf16 on an accelerator that has it, else fp32, or in fine-tuning the faster."""

    def run(self) -> None:
        from dualtower.data.cards import load_card
        from dualtower.data.loading import load_items
        from dualtower.evaluation.label_splits import check_fractions, labeled_splits
        from dualtower.files import write_text_atomically
        from dualtower.models.dual_tower import DualTower

        self._check()
        check_fractions(self.fractions)
        models = {name: DualTower.from_pretrained(name) for name in dict.fromkeys(self.models)}
        for name, model in models.items():
            model.config.require("image", f"{name}: a probe asks what images tell")
        card = load_card(self.data.card)
        if self.class_balanced and self.label in card.columns.numeric:
            raise ConfigError(f"--class-balanced draws categories, and {self.label!r} is a quantity; leave it out")
        train, test = (
            load_items(card, split, source=self.data.source, on_error=self.data.on_error, remember=True)
            for split in (self.train_split, self.split)
        )
        splits = labeled_splits(train, test, self.label, numeric=card.columns.numeric)
        probe = self._finetuned(models, splits, card) if self.method == "finetune" else self._frozen(models, splits)
        print(probe.table())
        if skipped := train.skipped + test.skipped:
            print(f"left out {len(skipped)} bad rows; the first: {skipped[0]}")
        if self.json:
            write_text_atomically(self.json, to_json(probe.to_dict(), indent=2))

    def _check(self) -> None:
        """Refuse, before anything is read, options that would not be looked at, or cannot be."""
        from dualtower.data.transforms.augmentation import PRESETS

        if not self.models:
            raise ConfigError("name one model or more: dualtower probe MODEL --data.card CARD --label ATTRIBUTE")
        defaults: dict[str, Any] = {f: getattr(type(self), f) for f in (*_OF_FINETUNING, "neighbors", "baselines")}
        foreign = {
            "knn": _OF_FINETUNING,
            "linear": (*_OF_FINETUNING, "neighbors"),
            "finetune": ("neighbors", "baselines"),
        }
        given = [name for name in foreign[self.method] if getattr(self, name) != defaults[name]]
        if given:
            options = ", no ".join(f"--{name.replace('_', '-')}" for name in given)
            hint = "; --scratch measures what fresh weights learn" if "baselines" in given else ""
            raise ConfigError(f"--method {self.method} takes no {options}{hint}")
        if self.augmentation not in (None, "card", *PRESETS):
            raise UnknownName("augmentation preset", self.augmentation, ["card", *PRESETS])
        if self.method == "finetune" and (self.minutes is None) == (self.epochs is None):
            raise ConfigError("fine-tuning needs one budget for each training: --minutes 2, or --epochs 20")

    def _frozen(self, models: dict[str, DualTower], splits: LabeledSplits) -> LabelProbe:
        from dualtower.evaluation.baselines import raw_pixels, with_fresh_weights
        from dualtower.evaluation.label_probe import image_vectors, vector_probe

        assert self.method != "finetune"
        size = self.batch_size or _ROWS
        vectors: dict[str, Vectors] = {}
        for name, model in models.items():
            vectors[name] = image_vectors(to_place(model, self.device, self.precision), batch_size=size, progress=True)
        if self.baselines:
            for name, model in _architectures(models).items():
                fresh = with_fresh_weights(model, seed=self.seed)
                vectors[f"random weights of {name}"] = image_vectors(fresh, batch_size=size, progress=True)
            vectors["raw 16x16 pixels"] = lambda items: raw_pixels(items.images)
        return vector_probe(
            vectors,
            splits,
            self.fractions,
            method=self.method,
            neighbors=self.neighbors,
            draws=self.draws,
            bootstrap=self.bootstrap,
            seed=self.seed,
        )

    def _finetuned(self, models: dict[str, DualTower], splits: LabeledSplits, card: DataCard) -> LabelProbe:
        from dualtower.device import find_device
        from dualtower.evaluation.label_probe import measure_labels
        from dualtower.training import label_finetuning
        from dualtower.training.building import with_known_values
        from dualtower.training.config import RunConfig

        logging.getLogger(label_finetuning.__name__).setLevel(logging.INFO)
        given: dict[str, Any] = {"batch_size": self.batch_size, "lr": self.lr, "augmentation": self.augmentation}
        train = replace(
            label_finetuning.FINETUNING,
            minutes=self.minutes,
            epochs=self.epochs,
            class_balanced_by=self.label if self.class_balanced else None,
            precision=self.precision,
            seed=self.seed,
            **{name: value for name, value in given.items() if value is not None},
        )

        train = with_known_values(RunConfig(train=train), card, splits.train).train

        def tuned(name: str, model: DualTower, *, scratch: bool) -> Callable[..., Any]:
            return label_finetuning.finetuned(
                model,
                splits,
                train,
                logit_adjustment=self.logit_adjustment,
                scratch=scratch,
                cpu=find_device(self.device).type == "cpu",
                name=name,
            )

        ways = {name: tuned(name, model, scratch=False) for name, model in models.items()}
        if self.scratch:
            for name, model in _architectures(models).items():
                ways[f"fresh weights of {name}"] = tuned(f"fresh weights of {name}", model, scratch=True)
        return measure_labels(
            ways,
            splits,
            self.fractions,
            method="finetune",
            draws=self.draws,
            bootstrap=self.bootstrap,
            seed=self.seed,
        )


def _architectures(models: dict[str, DualTower]) -> dict[str, DualTower]:
    """Keep the first of the models that differ in weights alone, by its name."""
    found: dict[str, DualTower] = {}
    for name, model in models.items():
        if all(model.config != other.config for other in found.values()):
            found[name] = model
    return found
