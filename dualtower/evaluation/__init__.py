"""Exact, blocked, tie-aware evaluation: embeddings -> ranks -> metrics with intervals -> report."""

from __future__ import annotations

from dualtower.evaluation.bootstrap import Difference, Interval, intervals, paired_test, summarise
from dualtower.evaluation.card_queries import card_queries
from dualtower.evaluation.classes import ClassFigures, class_figures, measure_heads
from dualtower.evaluation.comparison import (
    MeasuredQueries,
    QueryMetrics,
    compare,
    compare_queries,
    comparison_figures,
    comparison_table,
    load_queries,
    measured_queries,
    save_queries,
)
from dualtower.evaluation.exports import query_rows, save_query_table, save_run
from dualtower.evaluation.groups import BreakdownRow, breakdown
from dualtower.evaluation.label_metrics import label_metrics
from dualtower.evaluation.measure import Direction, Evaluation, check_measurable, evaluate
from dualtower.evaluation.metrics import chance_levels, metric_names, per_query
from dualtower.evaluation.pages import write_report
from dualtower.evaluation.qrels import Qrels, load_qrels
from dualtower.evaluation.ranks import Ranks, both_ways, retrieval_ranks
from dualtower.evaluation.relevance import Relevance, self_positions
from dualtower.evaluation.report import Report, Section
from dualtower.evaluation.reranked import Reranked, choose_weight, rerank
from dualtower.evaluation.similar import Similar, similar_products
from dualtower.evaluation.top import top_k

__all__ = [
    "BreakdownRow",
    "ClassFigures",
    "Difference",
    "Direction",
    "Evaluation",
    "Interval",
    "MeasuredQueries",
    "Qrels",
    "QueryMetrics",
    "Ranks",
    "Relevance",
    "Report",
    "Reranked",
    "Section",
    "Similar",
    "both_ways",
    "breakdown",
    "card_queries",
    "chance_levels",
    "check_measurable",
    "choose_weight",
    "class_figures",
    "compare",
    "compare_queries",
    "comparison_figures",
    "comparison_table",
    "evaluate",
    "intervals",
    "label_metrics",
    "load_qrels",
    "load_queries",
    "measure_heads",
    "measured_queries",
    "metric_names",
    "paired_test",
    "per_query",
    "query_rows",
    "rerank",
    "retrieval_ranks",
    "save_queries",
    "save_query_table",
    "save_run",
    "self_positions",
    "similar_products",
    "summarise",
    "top_k",
    "write_report",
]
