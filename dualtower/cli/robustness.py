"""`dualtower robustness`: what is left of recall where the image of the query is not as it should be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from dualtower.cli.evaluate import CardSource
from dualtower.cli.placing import to_place
from dualtower.config import to_json

__all__ = ["Robustness"]


@dataclass(frozen=True)
class Robustness:
    """Measure recall with corrupted and attacked query images: noise, blur, brightness, JPEG, occlusion, and PGD.

    Images search the texts and the other images of their product, which stay clean. Where no product has another image
    and the model reads no texts, an image searches itself.
    """

    model: Positional[str]
    """Model folder, or user/name on the Hub."""
    data: CardSource
    split: str = "test"
    """Split to measure on; `all` is the whole card."""
    corruptions: tuple[str, ...] = ("noise", "blur", "brightness", "jpeg", "occlusion")
    """Corruptions of the query image; nothing behind it measures the attack alone."""
    strengths: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Strengths of each corruption, from 1 to 5."""
    epsilons: tuple[float, ...] = (1, 2, 4)
    """How far the PGD attack may move each pixel value, in 255ths; nothing behind it measures the corruptions alone."""
    steps: int = 10
    """Gradient steps of the attack."""
    step_size: float | None = None
    """How far a step of the attack moves each pixel value, in 255ths; None is a quarter of epsilon."""
    rows: int | None = 1000
    """Most rows whose images are queries, drawn with the seed; None is all of them. All rows are searched."""
    ks: tuple[int, ...] = (1, 10)
    """Cut-offs K of recall@K and hit@K."""
    seed: int = 0
    """Seed of the rows that are drawn, of the noise, and of where the attack starts."""
    json: Path | None = None
    """Write the figures to this file."""
    report: Path | None = None
    """Write report.md with tables, a plot and example images into this folder."""
    bootstrap: int = 1000
    """Resamples behind the intervals."""
    batch_size: int = 256
    """Images embedded or attacked at a time."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""

    def run(self) -> None:
        from dualtower.data.cards import load_card
        from dualtower.data.loading import load_items
        from dualtower.evaluation import RobustnessConfig, evaluate_robustness, write_robustness
        from dualtower.files import write_text_atomically
        from dualtower.models.dual_tower import DualTower

        config = RobustnessConfig(
            corruptions=self.corruptions,
            strengths=self.strengths,
            epsilons=self.epsilons,
            steps=self.steps,
            step_size=self.step_size,
            rows=self.rows,
            ks=self.ks,
            bootstrap=self.bootstrap,
            seed=self.seed,
        )
        model = DualTower.from_pretrained(self.model)
        model.config.require("image", "robustness changes the images of queries")  # before the rows are read
        model = to_place(model, self.device, "fp32")
        card = load_card(self.data.card)
        items = load_items(card, self.split, source=self.data.source, on_error=self.data.on_error)
        result = evaluate_robustness(model, items, config, batch_size=self.batch_size, progress=True)
        print(result.table())
        if items.skipped:
            print(f"left out {len(items.skipped)} rows; the first: {items.skipped[0]}")
        if self.json:
            write_text_atomically(self.json, to_json(result.to_dict(), indent=2))
        if self.report:
            print(write_robustness(self.report, result))
