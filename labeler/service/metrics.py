"""Counters of the service in the text format of Prometheus; one registry per service, no global one."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from labeler.grounding.answers import ImageAnswer
from labeler.grounding.engine import Engine, HasUpstreams

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class RequestMetrics:
    """Counters of requests under names that begin with `prefix`. Label values are routes and statuses only, so their
    number is bounded."""

    def __init__(self, prefix: str) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{prefix}_requests", "Answered requests", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            f"{prefix}_request_seconds", "From a request's first byte to its answer's last", ["route"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge(f"{prefix}_requests_in_flight", "Requests being answered", registry=registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Metrics(RequestMetrics):
    """The labelling service's counters. Label values are routes and statuses only, so their number is bounded.

    Args:
        engine: the states of its model servers are read when the metrics are.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__("labeler")
        registry = self.registry
        self.image_seconds = Histogram(
            "labeler_image_seconds", "One image: decoding, all questions, box checks",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.images_in_work = Gauge("labeler_images_in_work", "Images decoded or with the engine", registry=registry)
        self._images = Counter(
            "labeler_images", "Answered images by the first failed part's status, or ok", ["status"], registry=registry
        )
        self._tokens = Counter("labeler_tokens", "Tokens of the questions and answers", ["kind"], registry=registry)
        if isinstance(engine, HasUpstreams):
            registry.register(_Upstreams(engine))

    def count(self, answer: ImageAnswer) -> None:
        """Count one answered image and its tokens."""
        self._images.labels(str(answer.failure or "ok")).inc()
        self._tokens.labels("prompt").inc(answer.prompt_tokens)
        self._tokens.labels("completion").inc(answer.completion_tokens)


class _Upstreams(Collector):
    """States of the model servers behind an engine at the time of the request."""

    def __init__(self, engine: HasUpstreams) -> None:
        self._engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily("labeler_upstream_up", "1 while a model server is asked", labels=["upstream"])
        in_flight = GaugeMetricFamily("labeler_upstream_in_flight", "Questions at a model server", labels=["upstream"])
        for state in self._engine.upstreams():
            up.add_metric([state.name], float(state.up))
            in_flight.add_metric([state.name], float(state.in_flight))
        yield from (up, in_flight)
