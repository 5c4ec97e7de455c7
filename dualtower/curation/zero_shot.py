"""Zero-shot labels: each row gets the label whose text lies nearest to its image (Radford et al., 2021, CLIP)."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dualtower.errors import ConfigError, UnknownName
from dualtower.files import text_file_atomically
from dualtower.markdown import markdown_table
from dualtower.models.dual_tower import DualTower
from dualtower.search.ingest.embed import check_model
from dualtower.search.local.columns import TextColumn
from dualtower.search.local.store import LocalStore

__all__ = ["ZeroShotLabels", "classify", "write_labels"]

_AT_ONCE = 16384


@dataclass(frozen=True, eq=False)
class ZeroShotLabels:
    """Labels of all rows that have an image.

    Attributes:
        labels: What could be chosen.
        ids: Ids of the rows.
        chosen: Number of each row's label, int64 ``[N]``.
        scores: Probability of it among the labels, float32 ``[N]``.
        given: What the catalog says, number of the label or -1, int64 ``[N]``; None without an attribute.
    """

    labels: tuple[str, ...]
    ids: list[str]
    chosen: np.ndarray
    scores: np.ndarray
    given: np.ndarray | None

    @property
    def accuracy(self) -> float | None:
        """Share of the rows with a known label that got it; None without an attribute."""
        if self.given is None or not (self.given >= 0).any():
            return None
        known = self.given >= 0
        return float((self.chosen[known] == self.given[known]).mean())

    def table(self) -> str:
        """Markdown: rows and mean score of the most frequent labels."""
        rows = [
            [self.labels[number], count, f"{float(self.scores[self.chosen == number].mean()):.2f}"]
            for number, count in Counter(self.chosen.tolist()).most_common(30)
        ]
        table = markdown_table(["label", "rows", "mean score"], rows)
        if self.accuracy is None:
            return table
        return f"{table}\n\n{self.accuracy:.1%} of the rows got the label that the catalog gives them."


def classify(
    store: LocalStore, model: DualTower, *, labels: Sequence[str] = (), attribute: str | None = None, prompt: str = "{}"
) -> ZeroShotLabels:
    """Label every row that has an image.

    Args:
        store: The catalog.
        model: Model of the catalog.
        labels: To choose from.
        attribute: Its values are the labels instead.
        prompt: How a label becomes a text; ``{}`` stands for the label.

    Raises:
        ConfigError: There are fewer than two labels, the prompt has no place for them, or the model lacks a tower.
        UnknownName: The catalog has no such attribute of text.
    """
    check_model(store.info, model)
    for modality in ("text", "image"):
        model.config.require(modality, "labels are texts that are compared with images")
    if "{}" not in prompt:
        raise ConfigError(f"the prompt {prompt!r} has no place for the label; write {{}} where it belongs")
    view = store.searcher.views.current()
    column = None
    if attribute is not None:
        held = view.columns.of.get(attribute)
        if not isinstance(held, TextColumn):
            texts = [name for name, other in view.columns.of.items() if isinstance(other, TextColumn)]
            raise UnknownName("attribute of text", attribute, texts)
        column, labels = held, held.vocabulary.texts()
    if len(set(labels)) < 2:
        raise ConfigError(f"there must be two labels or more to choose from, not {len(set(labels))}")
    embedded = model.encode_text([prompt.replace("{}", label) for label in labels])
    slots = view.everything["image"].slots
    rows = store.catalog.at(view.numbers[slots].tolist())
    slots = slots[np.isin(view.numbers[slots], list(rows))]  # a compaction may have dropped some meanwhile
    chosen, scores = np.empty(len(slots), np.int64), np.empty(len(slots), np.float32)
    for start in range(0, len(slots), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        logits = model.scale * (view.vectors["image"].gather(slots[part]).astype(np.float32) @ embedded.T)
        best = torch.from_numpy(logits).softmax(1).max(1)
        chosen[part], scores[part] = best.indices.numpy(), best.values.numpy()
    ids = [rows[number].id for number in view.numbers[slots].tolist()]
    given = None if column is None else column.codes[slots].astype(np.int64)
    return ZeroShotLabels(tuple(labels), ids, chosen, scores, given)


def write_labels(labeled: ZeroShotLabels, path: Path) -> None:
    """Write id, label and score of every row as CSV."""
    with text_file_atomically(path) as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "label", "score"])
        for row_id, number, score in zip(labeled.ids, labeled.chosen.tolist(), labeled.scores.tolist(), strict=True):
            writer.writerow([row_id, labeled.labels[number], f"{score:.4f}"])
