"""`report.md` of a run: the table, the protocol, training curves, and queries with their best hits as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.config import to_json
from dualtower.errors import RowError
from dualtower.evaluation.comparison import save_queries
from dualtower.evaluation.groups import breakdown_table
from dualtower.evaluation.measure import Direction, Evaluation
from dualtower.evaluation.report import TITLES, Section, markdown_table
from dualtower.evaluation.strips import draw_curves, draw_strip, save_png
from dualtower.folder import write_text_atomically

__all__ = ["write_report"]

PICTURES = "report"  # folder of the PNG files, beside report.md
_LONGEST_TEXT = 120


def write_report(
    folder: str | Path,
    result: Evaluation,
    *,
    sections: Sequence[Section] = (),
    history: Sequence[Mapping[str, Any]] = (),
    skipped: Sequence[RowError] = (),
    examples: int = 5,
    hits: int = 8,
    seed: int = 0,
) -> Path:
    """Write ``report.md``, its pictures in ``report/``, ``metrics.json``, and what each query achieved.

    Args:
        folder: Folder of the run.
        result: What `evaluate` returned.
        sections: What heads of the model achieve besides.
        history: Lines of the training journal, for the curves.
        skipped: Rows that were left out of training or evaluation, to be listed.
        examples: Queries shown of each kind: best, worst, and at random.
        hits: Hits shown of each query.
        seed: Chooses the random queries, and among equally good or bad ones.

    Returns:
        Path of ``report.md``.
    """
    folder = Path(folder)
    figures = result.to_dict() | {section.key: section.figures for section in sections}
    write_text_atomically(folder / "metrics.json", to_json(figures, indent=2) + "\n")
    save_queries(folder, result)
    protocol = result.report.protocol
    parts = [f"# {protocol['card']}, split {protocol['split']}", result.report.table(), _READING]
    for section in sections:
        parts += [f"## {section.title}", section.markdown]
    parts += ["## Protocol", _protocol(protocol)]
    curves = draw_curves(history)
    if curves is not None:
        save_png(curves, folder / PICTURES / "curves.png")
        parts += ["## Training", f"![training curves]({PICTURES}/curves.png)"]
    for name, direction in result.directions.items():
        parts.append(f"## {TITLES[name]}: examples")
        for kind, chosen in _choose(direction, examples, seed).items():
            parts += [f"### {kind}", _examples(folder, result, name, f"{name}_{kind.lower()}", chosen, hits)]
    for attribute, tables in result.breakdowns.items():
        parts.append(f"## By {attribute}")
        for name, rows in tables.items():
            parts += [f"### {TITLES[name]}", breakdown_table(_cell(attribute), rows, escape=_cell)]
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


def _protocol(protocol: Mapping[str, Any]) -> str:
    """The protocol as a table of names and values, the sizes of each direction, and the bounds of ties."""
    general = [[key.replace("_", " "), _plain(value)] for key, value in protocol.items() if key != "directions"]
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


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return _cell(str(value))


def _choose(direction: Direction, examples: int, seed: int) -> dict[str, np.ndarray]:
    """Best, worst and random queries (positions among all queries), by the reciprocal rank, ties broken by the seed."""
    values = direction.per_query["mrr"]
    shuffled = np.random.default_rng(seed).permutation(len(values))
    by_value = shuffled[np.argsort(-values[shuffled], kind="stable")]
    worst = by_value[::-1][: min(examples, len(values) // 2)]
    best = by_value[: min(examples, len(values) - len(worst))]
    rest = shuffled[~np.isin(shuffled, np.concatenate([best, worst]))][:examples]
    chosen = {"Random": rest, "Best": best, "Worst": worst}
    return {kind: direction.ranks.judged[which] for kind, which in chosen.items() if len(which)}


def _examples(folder: Path, result: Evaluation, name: str, stem: str, chosen: np.ndarray, hits: int) -> str:
    """A table of queries and hits; pictures become one PNG strip per query."""
    direction = result.directions[name]
    queries, gallery, ranks = direction.queries, direction.gallery, direction.ranks
    rows = []
    for number, (query, found) in enumerate(zip(chosen, direction.top_hits(chosen, k=hits), strict=True), 1):
        found = found[found >= 0]
        good = np.isin(found, direction.relevant_to(query))
        own = None if queries.pictures is None else queries.pictures[query]
        pictures = gallery.pictures
        shown = [] if pictures is None else [(pictures[i], bool(g)) for i, g in zip(found, good, strict=True)]
        cells = []
        if queries.texts is not None:
            cells.append(_cell(queries.texts[query]))
        if own is not None or shown:
            file = folder / PICTURES / f"{stem}_{number}.png"
            save_png(draw_strip(shown, query=own), file)
            cells.append(f"![pictures]({PICTURES}/{file.name})")
        if gallery.texts is not None:
            texts = [(_cell(gallery.texts[i]), g) for i, g in zip(found, good, strict=True)]
            cells.append("<br>".join(f"**{t} ✓**" if g else t for t, g in texts))
        first = ranks.expected[ranks.starts[query] : ranks.starts[query + 1]].min()
        rows.append([*cells, f"{first:,.1f}".removesuffix(".0")])
    header = {
        "text_to_image": ["query", "best hits"],
        "image_to_text": ["query", "best hits"],
        "image_to_image": ["query and best hits"],
    }[name]
    return markdown_table([*header, "rank of the first relevant"], rows)


def _cell(text: str) -> str:
    """Catalogue text as a table cell: on one line, not too long, and without meaning in Markdown or HTML."""
    text = " ".join(text.split())
    text = text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\|*_`[]#":
        text = text.replace(mark, f"\\{mark}")
    return text
