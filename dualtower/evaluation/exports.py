"""Files for other tools: the ranked hits of a measurement as a TREC run, and what each query achieved as a table."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualtower.errors import ConfigError, DataError, UnknownName
from dualtower.evaluation.directions import Direction
from dualtower.evaluation.evaluator import Evaluation
from dualtower.evaluation.topk import top_k
from dualtower.files import text_file_atomically

__all__ = ["RUN_DEPTH", "check_query_table", "query_rows", "save_query_table", "save_run"]

RUN_DEPTH = 1000  # what TREC's tracks ask for
QUERIES_AT_ONCE = 1024
TABLES = (".csv", ".jsonl")


def save_run(
    path: str | Path,
    result: Evaluation,
    *,
    direction: str = "text_to_image",
    depth: int = RUN_DEPTH,
    tag: str = "dualtower",
) -> None:
    """Write the best hits of every query as lines of ``qid Q0 docid rank score tag``, atomically.

    Query and document ids are those of the relevance file and of the rows. A row with several images is one document,
    which stands where its best image does, whereas in the report each image is an item of the gallery; the same
    holds for captions that are searched by texts.
    trec_eval and its relatives (https://github.com/usnistgov/trec_eval) read such a file. They break ties of the score
    by document id, whereas the report expects them to fall either way.

    Args:
        path: File to write.
        result: Result of `evaluate`.
        direction: One of the result's directions.
        depth: Hits per query at most, before images of one row become one document.
        tag: Name of the run; spaces become hyphens.

    Raises:
        UnknownName: There is no such direction.
        DataError: An id has a space, which the format cannot hold.
    """
    if direction not in result.directions:
        raise UnknownName("direction", direction, result.directions)
    searched = result.directions[direction]
    documents = searched.gallery.keys
    if searched.gallery.images is not None or direction == "text_to_text":
        documents = result.items.columns.ids.at(searched.gallery.rows)
    for what, keys in (("query", searched.queries.keys), ("row", documents)):
        if spaced := next((key for key in keys if re.search(r"\s", key)), None):
            raise DataError(f"id {spaced!r} of a {what} has a space, which a run file cannot hold; rename it")
    with text_file_atomically(Path(path)) as stream:
        stream.writelines(_run_lines(searched, documents, depth, re.sub(r"\s+", "-", tag)))


def query_rows(result: Evaluation) -> Iterator[dict[str, Any]]:
    """One row per query and direction: ``direction, query, text, relevant, rank`` and every metric.

    `rank` is that of the first relevant hit, from 1, with ties as expected; `text` is None for an image.
    """
    for name, searched in result.directions.items():
        counts = np.diff(searched.ranks.starts)[searched.ranks.judged]
        metrics = {metric: values for metric, values in searched.per_query.items() if metric != "median_rank"}
        texts = searched.queries.texts
        for i, query in enumerate(searched.ranks.judged.tolist()):
            yield {
                "direction": name,
                "query": searched.queries.keys[query],
                "text": None if texts is None else texts[query],
                "relevant": int(counts[i]),
                "rank": float(searched.per_query["median_rank"][i]),
                **{metric: float(values[i]) for metric, values in metrics.items()},
            }


def save_query_table(path: str | Path, result: Evaluation) -> None:
    """Write `query_rows` as CSV or JSON Lines, whichever the file's name says, atomically.

    Raises:
        ConfigError: The name says neither.
    """
    path = check_query_table(path)
    with text_file_atomically(path) as stream:
        if path.suffix == ".jsonl":
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in query_rows(result))
            return
        rows = list(query_rows(result))
        writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def check_query_table(path: str | Path) -> Path:
    """The path, if its name says a format; to be called before an hour of measuring.

    Raises:
        ConfigError: It does not.
    """
    if Path(path).suffix not in TABLES:
        raise ConfigError(f"{path}: a table of queries is a file that ends in {' or '.join(TABLES)}")
    return Path(path)


def _run_lines(searched: Direction, documents: Sequence[str], depth: int, tag: str) -> Iterator[str]:
    for start in range(0, len(searched.queries.keys), QUERIES_AT_ONCE):
        chosen = slice(start, start + QUERIES_AT_ONCE)
        hits, scores = top_k(
            searched.queries.embeddings[chosen],
            searched.gallery.embeddings,
            k=min(depth, len(documents)),
            exclude=None if searched.exclude is None else searched.exclude[chosen],
            similarity=searched.similarity,
        )
        for query, row, values in zip(searched.queries.keys[chosen], hits, scores, strict=True):
            best: dict[str, float] = {}  # of each document the first, which is its best
            for hit, score in zip(row.tolist(), values.tolist(), strict=True):
                if hit >= 0:
                    best.setdefault(documents[hit], score)
            for rank, (document, score) in enumerate(best.items(), 1):
                yield f"{query} Q0 {document} {rank} {score:.9g} {tag}\n"
