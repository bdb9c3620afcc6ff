"""Numbers about the server in Prometheus' format, at /metrics; each server has a registry of its own.

Counters and histograms are told as things happen, gauges are read when the page is asked for. Labels are names of models, routes
and reasons that are known beforehand: nothing that a client sends becomes a label.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

if TYPE_CHECKING:
    from plainformer.serve.engine import Engine, Observation
    from plainformer.serve.errors import Refusal
    from plainformer.serve.guard import Passed

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 600)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
_ROWS = (1, 2, 4, 8, 12, 16, 20, 24, 32, 64)
# What the engine observes: name → (help, what its label is called, buckets; none: a counter).
_OBSERVED: dict[str, tuple[str, str, tuple[float, ...] | None]] = {
    "finished": ("Answers and results by why they ended.", "reason", None),
    "cancelled": ("Requests that were ended before their answer was.", "why", None),
    "prompt_tokens": ("Tokens of prompts.", "", None),
    "prompt_tokens_cached": ("Tokens of prompts that were not computed anew.", "", None),
    "generated_tokens": ("New tokens.", "", None),
    "rejected": ("Requests that were not taken.", "why", None),
    "queue_seconds": ("Waiting for the first work.", "", _SECONDS),
    "time_to_first_token_seconds": ("From the request to its first token.", "", _SECONDS),
    "inter_token_seconds": ("Between two tokens of an answer.", "", _SECONDS),
    "batch_rows": ("Rows of a step.", "", _ROWS),
    "unit_seconds": ("A unit of the computing thread.", "kind", _SECONDS),
}
_BOTH = ("prompt_tokens", "generated_tokens")  # also as histograms, of one request each
_GAUGES = {
    "requests_running": "Requests that are being read or written.",
    "requests_waiting": "Requests that wait for their turn.",
    "requests_paused": "Answers that wait for a slow reader.",
    "rows_running": "Rows of the running batches.",
    "kv_blocks_used": "Blocks of keys and values in use.",
    "kv_blocks_total": "Blocks of keys and values.",
    "prefix_blocks": "Blocks kept for prompts that begin alike.",
}


def _gauge_of(engine: Engine, name: str) -> float:
    return engine.gauges().get(name, 0)


class Metrics:
    """The numbers of one server."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self._open = 0
        self._lock = threading.Lock()
        ProcessCollector(registry=self.registry)
        self._observed = {name: self._made(name, *said) for name, said in _OBSERVED.items()}
        self._sizes = {
            name: Histogram(f"plainformer_request_{name}", f"{_OBSERVED[name][0][:-1]} of one request.", ["model"],
                            buckets=_TOKENS, registry=self.registry)
            for name in _BOTH
        }  # fmt: skip
        names = ["route", "model", "status"]
        self.requests = Counter("plainformer_requests", "HTTP requests.", names, registry=self.registry)
        self.errors = Counter("plainformer_errors", "Errors that clients were told.", ["type"], registry=self.registry)
        self.seconds = Histogram(
            "plainformer_request_seconds",
            "An HTTP request, to its end.",
            ["route", "model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        for name, help in _GAUGES.items():
            self._gauge(name, help, partial(_gauge_of, engine, name))
        self._gauge("streams_open", "Streams that are being read.", lambda: self._open)
        self._gauge(
            "compute_thread_alive_seconds", "Since the computing thread was last seen.", lambda: engine.idle_seconds
        )
        engine.observers.append(self.observe)

    def _made(self, name: str, help: str, label: str, buckets: tuple[float, ...] | None) -> Any:
        labels = ["model", *([label] if label else [])]
        if buckets is None:
            return Counter(f"plainformer_{name}", help, labels, registry=self.registry)
        return Histogram(f"plainformer_{name}", help, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        Gauge(f"plainformer_{name}", help, registry=self.registry).set_function(read)

    # ---- what happens ---------------------------------------------------------------------------------------------

    def observe(self, seen: Observation) -> None:
        """Take a number of the engine."""
        metric = self._observed.get(seen.name)
        if metric is None:
            return
        of_label = _OBSERVED[seen.name][1]
        found = metric.labels(seen.model, *([seen.label] if of_label else []))
        if isinstance(metric, Counter):
            found.inc(seen.value)
            if seen.name in self._sizes and seen.value:
                self._sizes[seen.name].labels(seen.model).observe(seen.value)
        else:
            found.observe(seen.value)

    def answered(self, passed: Passed, model: str) -> None:
        """Count an HTTP request that has ended."""
        route = passed.route or "unknown"
        self.requests.labels(route, model, str(passed.status)).inc()
        self.seconds.labels(route, model).observe(passed.seconds)

    def error(self, refusal: Refusal) -> None:
        """Count an error that a client is told."""
        self.errors.labels(refusal.kind).inc()

    def stream_opened(self) -> None:
        with self._lock:
            self._open += 1

    def stream_closed(self) -> None:
        with self._lock:
            self._open -= 1

    def page(self) -> bytes:
        """Return the page."""
        return generate_latest(self.registry)
