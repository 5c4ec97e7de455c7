"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]


class Metrics:
    """What one service counts; a registry of its own, so that several can live in one process.

    Args:
        rows: Rows of the catalog.
        waiting: Requests that wait.
    """

    def __init__(self, *, rows: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        buckets = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
        labels = ["route", "status"]
        self._requests = Counter("dualtower_requests", "Requests.", labels, registry=self._registry)
        self._seconds = Histogram(
            "dualtower_request_seconds", "Time to answer.", ["route"], buckets=buckets, registry=self._registry
        )
        self._batches = Histogram(
            "dualtower_batch_size", "Requests per batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self._registry
        )
        Gauge("dualtower_rows", "Rows of the catalog.", registry=self._registry).set_function(lambda: float(rows()))
        waits = Gauge("dualtower_waiting", "Requests that wait.", registry=self._registry)
        waits.set_function(lambda: float(waiting()))

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int) -> None:
        """Count a batch."""
        self._batches.observe(size)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)
