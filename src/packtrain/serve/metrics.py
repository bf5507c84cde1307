"""Decides what is counted and timed of the server, in the form that Prometheus reads."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from packtrain.serve.worker import Worker

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class ServeMetrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "packtrain_requests",
            "Requests that were answered, by path and status.",
            ("path", "status"),
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "packtrain_prompt_tokens", "Tokens of prompts that were accepted.", registry=self._registry
        )
        self.tokens = Counter("packtrain_generated_tokens", "Tokens that were generated.", registry=self._registry)
        self.cancelled = Counter(
            "packtrain_cancelled_requests", "Requests whose client left before the end.", registry=self._registry
        )
        self.seconds = Histogram(
            "packtrain_request_seconds",
            "From the head of a request to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token_seconds = Histogram(
            "packtrain_first_token_seconds",
            "From the head of a request to the first text of its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def watch(self, worker: Worker, slots: int) -> None:
        """Also tells how busy the worker is."""
        gauges = {
            "packtrain_slots": ("Texts that can be generated at once.", lambda: slots),
            "packtrain_slots_used": ("Texts that are being generated.", lambda: worker.num_running),
            "packtrain_queue_length": ("Texts that wait for a slot.", lambda: worker.num_waiting),
            "packtrain_step": ("Training step of the model; 0 if it has none.", lambda: worker.served.opened.step or 0),
        }
        for name, (meaning, read) in gauges.items():
            Gauge(name, meaning, registry=self._registry).set_function(read)

    def write(self) -> bytes:
        return generate_latest(self._registry)
