"""Relevance as tables with a header, as BEIR and MTEB keep it, and the file of queries beside them.

A folder has ``queries.jsonl`` with lines of ``{"_id": ..., "text": ...}`` and ``qrels/test.tsv`` with the columns
``query-id``, ``corpus-id`` and ``score`` (N. Thakur et al., *BEIR*, arXiv:2104.08663; N. Muennighoff et al., *MTEB*,
arXiv:2210.07316), or ``qrels/test.jsonl`` with the same keys. ``corpus.jsonl`` is not read: the gallery is the card's.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualtower.errors import QrelsError, brief

__all__ = ["Judgment", "find_judgments", "find_queries", "judgments_of", "query_texts_of"]

QUERY = ("query-id", "query_id", "qid", "query")
DOCUMENT = ("corpus-id", "corpus_id", "docid", "doc_id", "doc-id")
GRADE = ("score", "grade", "relevance", "rel", "label")
QUERY_ID = ("_id", "id", *QUERY)
TEXT = ("text", "query")

Judgment = tuple[str, str, Any]  # query id, document id, grade


def find_judgments(folder: Path) -> Path:
    """The file of judgments in a folder as BEIR makes it: that of the test split, or the only one.

    Raises:
        QrelsError: There is none, or several and none of them is called test.
    """
    patterns = ("qrels/*.tsv", "qrels/*.jsonl", "qrels.tsv", "qrels.jsonl")
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    test = [path for path in found if path.stem == "test"]
    if len(test) == 1 or len(found) == 1:
        return (test or found)[0]
    names = ", ".join(str(path) for path in found[:4])
    raise QrelsError(f"{folder} holds no qrels/test.tsv; name the file" + (f", one of {names}" if names else ""))


def find_queries(judgments: Path) -> Path | None:
    """The ``queries.jsonl`` beside a file of judgments, or beside its folder ``qrels``."""
    near = (judgments.parent / "queries.jsonl", judgments.parent.parent / "queries.jsonl")
    return next((path for path in near if path.is_file()), None)


def judgments_of(text: str, path: Path) -> list[Judgment] | None:
    """The judgments of a table with a header or of JSON Lines; None for a text that is neither.

    Raises:
        QrelsError: A line does not fit the header.
    """
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip().startswith("{"):
        columns = _columns(_keys(first))
        if None in columns:
            return None
        rows = [(n, _parsed(line, path, n)) for n, line in enumerate(lines, 1) if line.strip()]
        return [_judgment([row.get(name) for name in columns], path, n) for n, row in rows]
    mark = max("\t", ",", key=first.count)
    names = [name.strip().lower() for name in next(csv.reader([first], delimiter=mark), [])]
    columns = _columns(names)
    if None in columns:
        return None
    places = [names.index(name) for name in columns]
    table = csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE if mark == "\t" else csv.QUOTE_MINIMAL)
    found: list[Judgment] = []
    for fields in list(table)[lines.index(first) + 1 :]:
        if len(fields) != len(names) and fields:
            raise QrelsError(f"{path}: {len(fields)} fields in {brief(fields, 60)}, whose header names {len(names)}")
        if fields:
            found.append(_judgment([fields[place] for place in places], path, len(found) + 2))
    return found


def query_texts_of(text: str, path: Path) -> dict[str, str] | None:
    """Query id -> text of JSON Lines; None for a text that is not of that kind."""
    lines = [line for line in text.splitlines() if line.strip()]
    names = _keys(lines[0]) if lines else ()
    key, column = _one(names, QUERY_ID), _one(names, TEXT)
    if key is None or column is None:
        return None
    rows = [_parsed(line, path, number) for number, line in enumerate(lines, 1)]
    return {str(row.get(key)): row.get(column, "") for row in rows}


def _one(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _columns(names: Sequence[str]) -> list[Any]:
    return [_one(names, QUERY), _one(names, DOCUMENT), _one(names, GRADE)]


def _keys(line: str) -> tuple[str, ...]:
    """The keys of an object on one line; none where the line is no whole object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ()
    return tuple(value) if isinstance(value, dict) else ()


def _parsed(line: str, path: Path, number: int) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise QrelsError(f"{path}, line {number}: {brief(error)}") from error
    if not isinstance(value, dict):
        raise QrelsError(f"{path}, line {number}: {brief(line, 60)} is not an object")
    return value


def _judgment(values: Sequence[Any], path: Path, number: int) -> Judgment:
    query, document, grade = values
    if query is None or document is None or grade is None:
        raise QrelsError(f"{path}, line {number}: query, document or grade is missing")
    if isinstance(grade, str):
        try:
            grade = float(grade)
        except ValueError:
            raise QrelsError(f"{path}, line {number}: grade {brief(grade, 40)!r} is not a number") from None
    return str(query).strip(), str(document).strip(), grade
