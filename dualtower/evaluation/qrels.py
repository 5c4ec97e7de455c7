"""Relevance files: which documents answer which query, and how well.

Three formats are read, told apart by their first line:

- Marqo's ground truth, JSON: ``{query text: {doc id: grade}}`` or ``{query text: [doc id, ...]}``.
- TREC qrels, lines of ``qid 0 docid grade`` (https://trec.nist.gov/data/qrels_eng/), together with an optional
  file of query texts: JSON ``{qid: text}`` or lines of ``qid<TAB>text``.
- BEIR's and MTEB's: tables with a header, and ``queries.jsonl`` beside them; see `dualtower.evaluation.qrels_tables`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualtower.errors import QrelsError, brief
from dualtower.evaluation.qrels_tables import Judgment, find_judgments, find_queries, judgments_of, query_texts_of

__all__ = ["Qrels", "checked_grade", "load_qrels"]


@dataclass(frozen=True)
class Qrels:
    """Queries and the graded documents of each, in the order of the file.

    Queries are told apart by `ids`: two queries with the same text stay two queries.

    Attributes:
        ids: One id per query; the position in the file where the format has none.
        texts: The query texts.
        relevant: Per query, document id -> grade. Grades are above 0; a document judged as irrelevant is left out.
        name: File name, for the protocol.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    relevant: tuple[Mapping[str, float], ...]
    name: str = "qrels"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def graded(self) -> bool:
        """Whether some grade differs from 1."""
        return any(grade != 1 for documents in self.relevant for grade in documents.values())


def load_qrels(path: str | Path, *, queries: str | Path | None = None) -> Qrels:
    """Read a relevance file.

    Args:
        path: JSON or TREC file, table with a header, or a folder as BEIR makes it, UTF-8.
        queries: Query texts. Without it those of ``queries.jsonl`` beside a table, else the query ids are the texts.

    Raises:
        QrelsError: The file is missing, malformed or empty; the message names the line or the query.
    """
    path = find_judgments(Path(path)) if Path(path).is_dir() else Path(path)
    text = _read(path)
    if (judgments := judgments_of(text, path)) is not None:
        qrels = _from_judgments(judgments, path, queries or find_queries(path))
    elif text.lstrip()[:1] in ("{", "["):
        if queries is not None:
            raise QrelsError(f"{path} is JSON and holds its query texts itself; leave out the file {queries}")
        qrels = _from_json(text, path)
    else:
        qrels = _from_trec(text, path, queries)
    if not any(qrels.relevant):
        raise QrelsError(f"{path} names no relevant document; expected {_EXPECTED}")
    return qrels


_EXPECTED = (
    "JSON {query: {doc id: grade}} or {query: [doc ids]}, TREC lines 'qid 0 docid grade', "
    "or a table with the header 'query-id corpus-id score'"
)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise QrelsError(f"cannot read relevance file {path}: {error}") from error


def _pairs_of(text: str, path: Path) -> list[tuple[str, Any]]:
    """The top-level entries of a JSON object; equal keys are kept apart, which a dict would merge."""
    try:
        value = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise QrelsError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, _Pairs):
        raise QrelsError(f"{path} holds a JSON {type(value).__name__}; expected {_EXPECTED}")
    return value


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its list of (key, value)."""


def _from_json(text: str, path: Path) -> Qrels:
    texts: list[str] = []
    relevant: list[dict[str, float]] = []
    for query, documents in _pairs_of(text, path):
        if isinstance(documents, _Pairs):
            grades = documents
        elif isinstance(documents, list) and all(type(d) in (str, int) for d in documents):
            grades = _Pairs((str(d), 1) for d in documents)
        else:
            raise QrelsError(f"{path}, query {query!r}: got {documents!r:.80}; expected {_EXPECTED}")
        texts.append(_checked_text(query, f"{path}, query {len(texts)}"))
        relevant.append(_positive(grades, f"{path}, query {query!r}"))
    ids = tuple(str(i) for i in range(len(texts)))
    return Qrels(ids, tuple(texts), tuple(relevant), name=path.name)


def _from_trec(text: str, path: Path, queries: str | Path | None) -> Qrels:
    judgments: list[Judgment] = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("\t") if line.count("\t") == 3 else line.split()
        if not fields:
            continue
        if len(fields) != 4:
            raise QrelsError(f"{path}, line {number}: {len(fields)} fields in {line!r:.80}; expected {_EXPECTED}")
        qid, _, document, grade = (f.strip() for f in fields)
        try:
            judgments.append((qid, document, float(grade)))
        except ValueError:
            raise QrelsError(f"{path}, line {number}: grade {grade!r} is not a number") from None
    return _from_judgments(judgments, path, queries)


def _from_judgments(judgments: Sequence[Judgment], path: Path, queries: str | Path | None) -> Qrels:
    grades: dict[str, list[tuple[str, Any]]] = {}
    for qid, document, grade in judgments:
        grades.setdefault(qid, []).append((document, grade))
    texts = {qid: qid for qid in grades} if queries is None else _query_texts(Path(queries))
    lost = [qid for qid in grades if qid not in texts]
    if lost:
        raise QrelsError(f"{len(lost)} query ids of {path} have no text in {queries}: {_some(lost)}")
    relevant = tuple(_positive(pairs, f"{path}, query {qid!r}") for qid, pairs in grades.items())
    checked = tuple(_checked_text(texts[qid], f"{queries}, query {qid!r}") for qid in grades)
    return Qrels(tuple(grades), checked, relevant, name=path.name)


def _query_texts(path: Path) -> dict[str, str]:
    text = _read(path)
    if (lines := query_texts_of(text, path)) is not None:
        return lines
    if text.lstrip()[:1] == "{":
        return dict(_pairs_of(text, path))
    texts = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        qid, tab, query = line.partition("\t")
        if not tab:
            raise QrelsError(f"{path}, line {number}: no tab in {line!r:.80}; expected 'qid<TAB>text' or JSON")
        texts[qid.strip()] = query.strip()
    return texts


def _checked_text(text: object, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise QrelsError(f"{where}: the query text is {text!r}; it must be a text that is not empty")
    return text


def _positive(pairs: list[tuple[str, Any]], where: str) -> dict[str, float]:
    """Keep the relevant documents (grade above 0) of one query."""
    grades: dict[str, float] = {}
    for document, grade in pairs:
        grade = checked_grade(grade, f"{where}: document {document!r}")
        if grades.setdefault(document, grade) != grade:
            raise QrelsError(f"{where}: document {document!r} has two grades, {grades[document]:g} and {grade:g}")
    return {document: grade for document, grade in grades.items() if grade > 0}


def checked_grade(grade: object, where: str) -> float:
    """The grade as a float.

    Raises:
        QrelsError: It is no finite number.
    """
    if isinstance(grade, bool) or not isinstance(grade, int | float) or not math.isfinite(grade):
        raise QrelsError(f"{where} has grade {brief(repr(grade), 60)}; grades are finite numbers")
    return float(grade)


def _some(names: list[str], count: int = 5) -> str:
    return ", ".join(repr(n) for n in names[:count]) + (", ..." if len(names) > count else "")
