"""Counters of the annotator in the text format of Prometheus, on a port of their own while a run lasts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from labeler.grounding.answers import ImageAnswer
from labeler.service.metrics import Metrics
from shared.errors import ConfigError

LOOPBACK = "127.0.0.1"


class AnnotatorMetrics:
    """Counters of one session; what changes by itself is read when the metrics are.

    Args:
        dataset, label_run: label values of `labeler_annotator_info`.
        service: its counters are served, too, when the engine is in this process.
    """

    def __init__(self, dataset: str, label_run: str, service: Metrics | None = None) -> None:
        registry = self.registry = CollectorRegistry()
        if service:
            registry.register(service.registry)
        info = Gauge("labeler_annotator_info", "What is being labelled", ["dataset", "label_run"], registry=registry)
        info.labels(dataset, label_run).set(1)
        self._images = Counter(
            "labeler_annotator_images", "Images with rows, by the first failed part's status, or ok", ["status"],
            registry=registry,
        )  # fmt: skip
        self._tokens = Counter("labeler_annotator_tokens", "Of questions and answers", ["kind"], registry=registry)
        self._last = Gauge(
            "labeler_annotator_last_answer_timestamp_seconds", "When an image was last answered", registry=registry
        )

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge `labeler_annotator_<name>` whose value is asked for when the metrics are."""
        Gauge(f"labeler_annotator_{name}", what, registry=self.registry).set_function(value)

    def count(self, answer: ImageAnswer) -> None:
        self._images.labels(str(answer.failure or "ok")).inc()
        self._tokens.labels("prompt").inc(answer.prompt_tokens)
        self._tokens.labels("completion").inc(answer.completion_tokens)
        self._last.set_to_current_time()

    def count_unreadable(self) -> None:
        self._images.labels("unreadable").inc()

    @contextmanager
    def served(self, address: str | None) -> Iterator[None]:
        """Inside it they are at http://<address>/metrics. Raises ConfigError for an address that cannot be had.

        Args:
            address: a port of the loopback interface, or host:port; None: nowhere.
        """
        if address is None:
            yield
            return
        host, _, port = address.rpartition(":")
        try:
            server, thread = start_http_server(int(port), host.strip("[]") or LOOPBACK, self.registry)
        except (OSError, ValueError, OverflowError) as err:
            raise ConfigError(f"no metrics at {address!r}: {err}", fix="use --metrics <port> or <host>:<port>") from err
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
