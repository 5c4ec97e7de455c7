"""Exact, blocked, tie-aware evaluation: embeddings -> ranks -> metrics with intervals -> report."""

from __future__ import annotations

from dualtower.evaluation.bootstrap import Difference, Interval, intervals, paired_test, summarize
from dualtower.evaluation.breakdown import BreakdownRow, breakdown
from dualtower.evaluation.card_queries import card_queries
from dualtower.evaluation.classification import ClassMetrics, class_metrics, evaluate_heads
from dualtower.evaluation.comparison import (
    MeasuredQueries,
    QueryMetrics,
    compare,
    compare_queries,
    comparison_metrics,
    comparison_table,
    load_queries,
    measured_queries,
    save_queries,
)
from dualtower.evaluation.directions import Direction
from dualtower.evaluation.evaluator import Evaluation, evaluate
from dualtower.evaluation.exports import query_rows, save_query_table, save_run
from dualtower.evaluation.label_metrics import label_metrics
from dualtower.evaluation.metrics import chance_levels, metric_names, per_query
from dualtower.evaluation.product_retrieval import ProductRetrieval, evaluate_product_retrieval
from dualtower.evaluation.qrels import Qrels, load_qrels
from dualtower.evaluation.ranks import Ranks, both_ways, retrieval_ranks
from dualtower.evaluation.relevance import Relevance, self_positions
from dualtower.evaluation.reports.report import Report, Section
from dualtower.evaluation.reports.writer import write_report
from dualtower.evaluation.reranked import Reranked, choose_weight, rerank
from dualtower.evaluation.robustness.config import RobustnessConfig
from dualtower.evaluation.robustness.measure import evaluate_robustness
from dualtower.evaluation.robustness.report import write_robustness
from dualtower.evaluation.robustness.result import Robustness
from dualtower.evaluation.sides import check_measurable
from dualtower.evaluation.topk import top_k

__all__ = [
    "BreakdownRow",
    "ClassMetrics",
    "Difference",
    "Direction",
    "Evaluation",
    "Interval",
    "MeasuredQueries",
    "ProductRetrieval",
    "Qrels",
    "QueryMetrics",
    "Ranks",
    "Relevance",
    "Report",
    "Reranked",
    "Robustness",
    "RobustnessConfig",
    "Section",
    "both_ways",
    "breakdown",
    "card_queries",
    "chance_levels",
    "check_measurable",
    "choose_weight",
    "class_metrics",
    "compare",
    "compare_queries",
    "comparison_metrics",
    "comparison_table",
    "evaluate",
    "evaluate_heads",
    "evaluate_product_retrieval",
    "evaluate_robustness",
    "intervals",
    "label_metrics",
    "load_qrels",
    "load_queries",
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
    "summarize",
    "top_k",
    "write_report",
    "write_robustness",
]
