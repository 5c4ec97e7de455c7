"""Queries that stand in the rows of a catalog: each row says how well its product answers a query."""

from __future__ import annotations

from itertools import repeat

from dualtower.data.cards import QueryColumns
from dualtower.data.items import ItemDataset
from dualtower.errors import QrelsError, brief
from dualtower.evaluation.qrels import Qrels, checked_grade

__all__ = ["card_queries"]


def card_queries(items: ItemDataset, columns: QueryColumns) -> tuple[ItemDataset, Qrels]:
    """Take the graded queries out of the rows, and one row of each product as the gallery.

    A product that answers several queries stands in several rows. It is one document: its first row. Of several grades
    for one query and product the highest counts; a row without a query is a document only. That is the protocol of
    graded sets such as Marqo-GS-10M (T. Zhu et al., arXiv:2404.08535).

    Args:
        items: Rows whose attributes hold the query columns.
        columns: Columns of the card.

    Returns:
        The gallery, and the queries in the order in which they come.

    Raises:
        QrelsError: A grade is no number, one query id has two texts, or no row is relevant to any query.
    """
    gallery: dict[str, int] = {}
    rows = items.columns
    for row, product in enumerate(rows.product_ids):
        gallery.setdefault(product, row)
    texts = rows.attributes[columns.text]
    ids = texts if columns.id is None else rows.attributes[columns.id]
    grades = repeat(1.0, len(items)) if columns.grade is None else rows.attributes[columns.grade]
    text_of: dict[str, str] = {}
    relevant: dict[str, dict[str, float]] = {}
    for row, (query, text, grade) in enumerate(zip(ids, texts, grades, strict=True)):
        if query in (None, "") or text in (None, ""):
            continue
        where = f"{items.card}, row {brief(rows.ids[row], 60)}"
        if text_of.setdefault(str(query), str(text)) != str(text):
            raise QrelsError(f"{where}: query {brief(query, 40)!r} has another text than before, {brief(text, 60)!r}")
        document = rows.ids[gallery[rows.product_ids[row]]]
        judged = relevant.setdefault(str(query), {})
        value = checked_grade(columns.grades.get(str(grade), grade), f"{where}: column {columns.grade!r}")
        judged[document] = max(value, judged.get(document, value))
    positive = [{document: grade for document, grade in judged.items() if grade > 0} for judged in relevant.values()]
    if not any(positive):
        raise QrelsError(f"{items.card}, split {items.split}: no row is relevant to a query ({columns.text!r})")
    name = f"columns of {items.card}"
    return items.select(gallery.values()), Qrels(tuple(relevant), tuple(text_of.values()), tuple(positive), name=name)
