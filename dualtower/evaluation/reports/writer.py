"""`report.md` of a run: the table, the protocol, training curves, and queries with their best hits as images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.config import to_json
from dualtower.errors import RowError
from dualtower.evaluation.breakdown import breakdown_table
from dualtower.evaluation.comparison import save_queries
from dualtower.evaluation.directions import Direction
from dualtower.evaluation.evaluator import Evaluation
from dualtower.evaluation.examples import Example, Placed, find_examples, sample_scores
from dualtower.evaluation.reports.figures import Framed, draw_curves, draw_histogram, draw_strip, save_png
from dualtower.evaluation.reports.report import TITLES, Section
from dualtower.evaluation.sides import Side
from dualtower.files import write_text_atomically
from dualtower.markdown import markdown_table

__all__ = ["plain_cell", "write_report"]

IMAGES = "report"  # folder of the PNG files, beside report.md
_LONGEST_TEXT = 120


def write_report(
    folder: str | Path,
    result: Evaluation | None,
    *,
    title: str | None = None,
    sections: Sequence[Section] = (),
    history: Sequence[Mapping[str, Any]] = (),
    skipped: Sequence[RowError] = (),
    examples: int = 5,
    hits: int = 8,
    seed: int = 0,
) -> Path:
    """Write ``report.md``, its images in ``report/``, ``metrics.json``, and what each query achieved.

    Args:
        folder: Folder of the run.
        result: What `evaluate` returned; None where retrieval is not what was measured.
        title: Heading of the page; by default what `result` was measured on.
        sections: What the model achieves besides.
        history: Lines of the training journal, for the curves.
        skipped: Rows that were left out of training or evaluation, to be listed.
        examples: Queries shown of each kind: best, worst, and at random.
        hits: Hits shown of each query.
        seed: Chooses the random queries, and among equally good or bad ones.

    Returns:
        Path of ``report.md``.
    """
    folder = Path(folder)
    figures = {} if result is None else result.to_dict()
    figures |= {section.key: section.figures for section in sections}
    write_text_atomically(folder / "metrics.json", to_json(figures, indent=2) + "\n")
    parts = [f"# {title or _measured(result)}"]
    if result is not None:
        save_queries(folder, result)
        parts += [result.report.table(), _READING]
    for section in sections:
        parts += [f"## {section.title}", section.markdown]
        for name, image in section.images.items():
            save_png(image, folder / IMAGES / name)
    if result is not None:
        parts += ["## Protocol", _protocol(result.report.protocol)]
    curves = draw_curves(history)
    if curves is not None:
        save_png(curves, folder / IMAGES / "curves.png")
        parts += ["## Training", f"![training curves]({IMAGES}/curves.png)"]
    if result is not None:
        parts += _queries(folder, result, examples=examples, hits=hits, seed=seed)
    if skipped:
        parts += ["## Rows left out", f"{len(skipped):,} rows could not be used; the first of them:"]
        parts.append("\n".join(f"- {_cell(str(error))}" for error in skipped[:50]))
    path = folder / "report.md"
    write_text_atomically(path, "\n\n".join(parts) + "\n")
    return path


_READING = (
    "In brackets: 95 % interval, bootstrap by product (where all resamples agree, exact bounds after Clopper and "
    "Pearson). *chance*: a random order of the gallery. *recall@K*: share "
    "of the relevant items among the first K; *hit@K*: at least one of them is; *median rank*: of the first relevant "
    "item. Items of equal score count by the average over their orders."
)


_LEGEND = (
    "Each hit with its rank and score; right answers are green or marked ✓, and up to three that are not among the "
    "hits stand behind them. No product is the query of two lines of a list."
)


def _measured(result: Evaluation | None) -> str:
    """The heading of a page."""
    if result is None:
        return "Report"
    return f"{result.report.protocol['card']}, split {result.report.protocol['split']}"


def _queries(folder: Path, result: Evaluation, *, examples: int, hits: int, seed: int) -> list[str]:
    """Scores and examples of every direction, and the figures broken down."""
    parts = []
    for name, direction in result.directions.items():
        parts += [f"## {TITLES[name]}: scores", _scores(folder, name, direction, seed)]
        parts += [f"## {TITLES[name]}: examples", _LEGEND]
        for kind, found in find_examples(direction, examples=examples, hits=hits, seed=seed).items():
            parts += [f"### {kind}", _examples(folder, direction, name, kind, found)]
    for attribute, tables in result.breakdowns.items():
        parts.append(f"## By {attribute}")
        for name, rows in tables.items():
            parts += [f"### {TITLES[name]}", breakdown_table(_cell(attribute), rows, escape=_cell)]
    return parts


def _protocol(protocol: Mapping[str, Any]) -> str:
    """The protocol as a table of names and values, the sizes of each direction, and the bounds of ties."""
    general = [[key.replace("_", " "), plain_cell(value)] for key, value in protocol.items() if key != "directions"]
    sizes = [
        [
            TITLES[name],
            f"{d['queries']:,}",
            f"{d['queries_without_relevant']:,}",
            f"{d['gallery']:,}",
            f"{d['relevant_per_query']:.2f}",
            f"{d['queries_with_ties']:,}",
            f"{d['pessimistic']['mrr']:.3f} to {d['optimistic']['mrr']:.3f}",
        ]
        for name, d in protocol["directions"].items()
    ]
    header = [
        "direction",
        "queries",
        "without relevant",
        "gallery",
        "relevant per query",
        "with ties",
        "MRR by order of ties",
    ]
    return markdown_table(["what", "value"], general) + "\n\n" + markdown_table(header, sizes)


def plain_cell(value: Any) -> str:
    """A value of a protocol as text without meaning in Markdown."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {plain_cell(v)}" for k, v in value.items())
    return _cell(str(value))


def _scores(folder: Path, name: str, direction: Direction, seed: int) -> str:
    """A histogram of the scores of relevant and other pairs, with what it says in a sentence."""
    relevant, others = sample_scores(direction, seed=seed)
    if not len(others):
        return "Everything that is searched is relevant to every query."
    file = folder / IMAGES / f"{name}_scores.png"
    save_png(draw_histogram({"relevant": relevant, "not relevant": others}), file)
    below = np.searchsorted(np.sort(others), relevant, side="left") + np.searchsorted(
        np.sort(others), relevant, "right"
    )
    return (
        f"![scores]({IMAGES}/{file.name})\n\nMedian score of a relevant pair {np.median(relevant):.3f}, of another "
        f"one {np.median(others):.3f}; in {below.mean() / 2 / len(others):.1%} of cases a relevant pair scores higher "
        f"than another ({len(relevant):,} and {len(others):,} pairs drawn at random)."
    )


def _examples(folder: Path, direction: Direction, name: str, kind: str, examples: Sequence[Example]) -> str:
    """A table of queries, their hits and the right answers that are not among them; images become one PNG each."""
    queries, gallery = direction.queries, direction.gallery
    rows = []
    for number, example in enumerate(examples, 1):
        cells = [] if queries.texts is None else [_cell(queries.texts[example.query])]
        own = None if queries.images is None else queries.images[example.query]
        shown = [] if gallery.images is None else [example.hits, example.missed]
        if shown or own is not None:
            strip = draw_strip([[_framed(gallery, placed) for placed in part] for part in shown], query=own)
            file = folder / IMAGES / f"{name}_{kind.lower()}_{number}.png"
            save_png(strip, file)
            cells.append(f"![images]({IMAGES}/{file.name})")
        if gallery.texts is not None:
            cells += ["<br>".join(_line(gallery, placed) for placed in part) for part in (example.hits, example.missed)]
        rows.append([*cells, f"{example.first_rank:,.1f}".removesuffix(".0")])
    header = {
        "text_to_image": ["query", "best hits, and right answers beyond them"],
        "image_to_text": ["query", "best hits", "right answers beyond them"],
        "image_to_image": ["query, best hits, and right answers beyond them"],
        "text_to_text": ["query", "best hits", "right answers beyond them"],
    }[name]
    return markdown_table([*header, "rank of the first relevant"], rows)


def _framed(gallery: Side, placed: Placed) -> Framed:
    assert gallery.images is not None
    return Framed(gallery.images[placed.item], placed.relevant, placed.label)


def _line(gallery: Side, placed: Placed) -> str:
    assert gallery.texts is not None
    text = f"{placed.label} {_cell(gallery.texts[placed.item])}"
    return f"**{text} ✓**" if placed.relevant else text


def _cell(text: str) -> str:
    """Text of a catalog on one line, not too long, and without meaning in Markdown (but for tables' bars) or HTML."""
    text = " ".join(text.split())
    text = text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\*_`[]#":
        text = text.replace(mark, f"\\{mark}")
    return text
