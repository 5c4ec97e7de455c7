"""`report.md` of a measurement of robustness: tables, a plot of recall by strength, and what the images look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dualtower.config import to_json
from dualtower.evaluation.reports.figures import Framed, draw_panels, draw_strip, save_png
from dualtower.evaluation.reports.writer import plain_cell
from dualtower.evaluation.robustness.corruptions import to_image
from dualtower.evaluation.robustness.result import CLEAN, MEAN, PGD, Condition, Example, Robustness
from dualtower.evaluation.robustness.searches import TITLES
from dualtower.files import write_text_atomically
from dualtower.markdown import markdown_table

__all__ = ["draw_robustness", "write_robustness"]

IMAGES = "report"  # folder of the PNG files, beside report.md


def write_robustness(folder: str | Path, result: Robustness) -> Path:
    """Write ``report.md``, its images in ``report/``, and ``metrics.json``.

    Args:
        folder: Made where it is missing.
        result: What `evaluate_robustness` returned.

    Returns:
        Path of ``report.md``.
    """
    folder = Path(folder)
    write_text_atomically(folder / "metrics.json", to_json(result.to_dict(), indent=2) + "\n")
    protocol = result.protocol
    parts = [f"# {protocol['card']}, split {protocol['split']}: robustness"]
    for name, sizes in protocol["searches"].items():
        parts += [f"## {TITLES[name]}", f"{sizes['queries']:,} queries.", result.table_of(name)]
    parts += ["## How to read it", result.reading()]
    save_png(draw_robustness(result), folder / IMAGES / "recall.png")
    parts += ["## By strength", f"![recall by strength]({IMAGES}/recall.png)"]
    first = TITLES[next(iter(result.measured))]
    parts += [
        "## Examples",
        f"Each image as it is, then by strength. The frame is green where something relevant is still among the first "
        f"{result.depth} hits ({first}). Attacked images are rounded to whole pixel values here.",
        _examples(folder, result.examples),
    ]
    parts += ["## Protocol", *_protocol(protocol)]
    path = folder / "report.md"
    write_text_atomically(path, "\n\n".join(parts) + "\n")
    return path


def _protocol(protocol: Mapping[str, Any]) -> list[str]:
    """Tables of what was done to the images, and of all else."""
    parts = []
    if corruptions := protocol["corruptions"]:
        strengths = [key for key in next(iter(corruptions.values())) if key != "level"]
        rows = [[name, of["level"], *(f"{of[key]:g}" for key in strengths)] for name, of in corruptions.items()]
        header = ["corruption", "level", *(f"strength {key}" for key in strengths)]
        parts.append(markdown_table(header, rows, left=(0, 1)))
    general = {key: value for key, value in protocol.items() if key not in ("corruptions", "searches", "attack")}
    for values in (protocol["attack"], general):
        if values:
            rows = [[key.replace("_", " "), plain_cell(_joined(value))] for key, value in values.items()]
            parts.append(markdown_table(["attack" if values is not general else "what", "value"], rows, left=(0, 1)))
    return parts


def _joined(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def draw_robustness(result: Robustness) -> Image.Image:
    """Recall by strength: for each search a panel of the corruptions and one of the attack, clean images at 0."""
    metric = f"recall@{result.depth}"
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, conditions in result.measured.items():
        clean = (0.0, conditions[CLEAN].metrics[metric].value)
        for condition, of in conditions.items():
            if condition in (CLEAN, MEAN):
                continue
            what = "PGD attack" if condition.name == PGD else "corruptions"
            curves = panels.setdefault(f"{TITLES[name]}, {what}: {metric}", {})
            point = (float(condition.strength), of.metrics[metric].value)
            curves.setdefault(condition.name, [clean]).append(point)
    for curves in panels.values():
        for points in curves.values():
            points.sort()
    both = len(panels) > len(result.measured)
    return draw_panels(
        panels,
        x_label="strength, or epsilon in 255ths; 0 is clean",
        columns=2 if both else 1,
        legend="lower left",
        from_zero=True,
    )


def _examples(folder: Path, examples: Sequence[Example]) -> str:
    """A table of strips: conditions of one name down, examples across."""
    names = list(dict.fromkeys(c.name for example in examples for c in example.images if c != CLEAN))
    rows = []
    for name in names:
        cells = []
        for number, example in enumerate(examples, 1):
            file = folder / IMAGES / f"{name}_{number}.png"
            conditions = sorted((c for c in example.images if c.name == name), key=lambda c: c.strength)
            save_png(_strip(example, conditions), file)
            cells.append(f"![{name}]({IMAGES}/{file.name})")
        rows.append([name, "<br>".join(cells)])
    return markdown_table(["", "images"], rows, left=(0, 1))


def _strip(example: Example, conditions: Sequence[Condition]) -> Image.Image:
    clean = Framed(to_image(example.images[CLEAN]), example.found[CLEAN], "clean")
    changed = [Framed(to_image(example.images[c]), example.found[c], c.label) for c in conditions]
    return draw_strip([[clean], changed])
