"""Label the images of a manifest: resumable, interruptible, with bounded memory, one row per image and part.

The remaining work is the manifest minus the image_ids that have rows, so the same command resumes a killed run. Rows
are safe when their shard is written; what was in flight is asked for again.
"""

import asyncio
import logging
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from labeler.annotation.backlog import Answered, Backlog, Item, Request
from labeler.annotation.client import GroundingClient, client_of
from labeler.annotation.label_run import default_label_run, finished_parts, open_label_run
from labeler.annotation.metrics import AnnotatorMetrics
from labeler.annotation.ray_cluster import Asking, RayCluster
from labeler.annotation.run_log import PROGRESS_S, event, log_path, run_log
from labeler.annotation.writer import LabelWriter
from labeler.grounding.answers import ImageAnswer, ServiceInfo
from labeler.grounding.rows import answered_rows, unreadable_rows
from labeler.service.grounding_service import limit_image_threads
from labeler.settings import Settings, load_settings
from shared.errors import DataError, DgreidError
from shared.labels import writer_lock
from shared.progress import Progress
from shared.schemas import LabelStatus, ManifestRow

log = logging.getLogger(__name__)

ARRIVED_S = 1.0  # between two looks at what was answered of requests that have not ended
WAIT_LINE_S = 10.0  # without an answer, after which a line says what is waited for


@dataclass(frozen=True)
class AnnotateOptions:
    """How a run behaves; nothing here changes a label."""

    connections: int = 8  # requests in flight
    batch_images: int = 16  # images per request, within the service's limit
    shard_rows: int = 20_000  # rows per shard: a kill costs at most these ...
    shard_seconds: float = 60.0  # ... or the rows of this time
    retry_failed: bool = False  # ask again for parts whose newest row is a failure
    failed_share_limit: float = 0.2  # of the images asked about; more stops the run
    failed_share_after: int = 100  # images asked about before that limit applies
    ready_timeout_s: float = 300.0  # to wait for the service to become ready
    stall_s: float = 900.0  # without an answer, after which the run stops
    transport_attempts: int = 8  # requests for one batch
    cluster: str | None = None  # whose actors ask: local, auto or ray://host:10001; None: this process
    metrics: str | None = None  # port, or host:port, on which the session's Prometheus metrics are


@dataclass
class Summary:
    """How a labelling run ended; counts are of images unless said otherwise."""

    label_run: str
    dataset: str
    done_before: int = 0  # finished in earlier sessions of this run
    done_now: int = 0  # rows were written, whatever their status
    failed: Counter[str] = field(default_factory=Counter)  # of done_now, by status
    finished_at_attempt: Counter[int] = field(default_factory=Counter)  # of the successful ones
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    interrupted: bool = False  # stopped by a signal; the next session does the rest

    @property
    def images(self) -> int:
        return self.done_before + self.done_now

    @property
    def images_per_s(self) -> float:
        return self.done_now / self.seconds if self.seconds > 0 else 0.0

    @property
    def asked(self) -> int:
        """Images that went to the engine: the base of `failed_share`."""
        return self.done_now - self.failed[LabelStatus.UNREADABLE]

    @property
    def failed_share(self) -> float:
        return (self.failed.total() - self.failed[LabelStatus.UNREADABLE]) / max(1, self.asked)

    def count(self, answer: ImageAnswer) -> LabelStatus | None:
        """Count one answered image; returns its failure, if it failed."""
        self.done_now += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        failure = answer.failure
        if failure:
            self.failed[failure] += 1
        else:
            self.finished_at_attempt[max(part.attempts for part in answer.parts)] += 1
        return failure

    def table(self) -> list[tuple[str, str]]:
        """(name, value) rows of the closing table."""
        lines = [
            ("label run", self.label_run),
            ("images", f"{self.images:,}"),
            ("done before", f"{self.done_before:,}"),
            ("done now", f"{self.done_now:,}"),
            *((f"failed: {kind}", f"{count:,}") for kind, count in sorted(self.failed.items()) if count),
            *((f"finished at attempt {n}", f"{count:,}") for n, count in sorted(self.finished_at_attempt.items())),
            ("images/s", f"{self.images_per_s:,.1f}"),
        ]
        if self.prompt_tokens or self.completion_tokens:
            lines.append(("tokens", f"{self.prompt_tokens:,} prompt, {self.completion_tokens:,} answer"))
        return [*lines, ("interrupted", "yes; run the same command to resume")] if self.interrupted else lines


def annotate(
    rows: Iterable[ManifestRow],
    dataset_root: Path,
    dataset: str,
    labels_root: Path,
    label_run: str | None = None,
    *,
    url: str | None = None,
    api_key: SecretStr | None = None,
    settings: Settings | None = None,
    options: AnnotateOptions | None = None,
) -> Summary:
    """Label the images of one data set that this label run has not labelled yet.

    Args:
        rows: the manifest of the data set; a ManifestFile is streamed.
        dataset_root: folder that its paths are relative to.
        labels_root: folder of all label runs.
        label_run: name of the run; by default derived from engine, model and prompt version.
        url, api_key: of a running service; without a URL the engine runs in this process.
        settings: of the engine in this process; by default from the environment.

    SIGINT and SIGTERM stop sending and write what was answered; what is in flight is finished and written, too
    (`Summary.interrupted`). A second signal ends the process at once.

    Raises:
        DgreidError: too many images fail, no request is answered any more, the service cannot be used, or the folder
            cannot be written. Finished rows are written first.
        ConfigError: the run was started with another engine, model or prompt.
        ServiceUnfitError: another engine, model or prompt answers than at the start; none of its answers is written.
        DataError: a row of another data set, or a damaged shard.
    """
    options = options or AnnotateOptions()

    async def run() -> Summary:
        limit_image_threads()
        async with client_for(url, api_key, settings, options) as client:
            return await annotate_with(client, rows, dataset_root, dataset, labels_root, label_run, options)

    return asyncio.run(run())


def client_for(
    url: str | None, api_key: SecretStr | None, settings: Settings | None, options: AnnotateOptions
) -> GroundingClient | RayCluster:
    """The client of a running service, or without a URL of an engine in this process; or the actors of a Ray cluster,
    each with such a client. Raises ConfigError."""
    connections, attempts = options.connections, options.transport_attempts
    if options.cluster is None:
        return client_of(settings, url, api_key, connections, attempts)
    settings, batch_images, ready_s = settings or load_settings(), options.batch_images, options.ready_timeout_s
    return RayCluster(options.cluster, Asking(settings, url, api_key, connections, attempts, batch_images, ready_s))


async def annotate_with(
    client: GroundingClient | RayCluster,
    rows: Iterable[ManifestRow],
    dataset_root: Path,
    dataset: str,
    labels_root: Path,
    label_run: str | None = None,
    options: AnnotateOptions | None = None,
) -> Summary:
    """`annotate` through an open client."""
    options = options or AnnotateOptions()
    await client.wait_ready(options.ready_timeout_s)
    info = await client.info()
    label_run = label_run or default_label_run(info)
    open_label_run(labels_root, label_run, info)
    with writer_lock(labels_root, label_run, dataset):
        finished = finished_parts(labels_root, label_run, dataset, info.parts, final_only=options.retry_failed)
        backlog = Backlog(rows, info.parts, finished)
        writer = LabelWriter(
            labels_root, label_run, dataset, shard_rows=options.shard_rows, shard_seconds=options.shard_seconds
        )
        metrics = AnnotatorMetrics(dataset, label_run, client.service_metrics)
        with (
            metrics.served(options.metrics),
            run_log(log_path(labels_root, label_run, dataset)),
            Progress(f"label {dataset}", backlog.remaining) as progress,
        ):
            summary = Summary(label_run, dataset, backlog.done_before)
            job = _Job(client, info, options, writer, summary, progress, metrics)
            return await job.run(client.requests(_of_dataset(backlog, dataset), dataset_root, options.batch_images))


class _Job:
    """One session of a label run: keeps requests in flight and writes their answers as they arrive."""

    def __init__(
        self,
        client: GroundingClient | RayCluster,
        info: ServiceInfo,
        options: AnnotateOptions,
        writer: LabelWriter,
        summary: Summary,
        progress: Progress,
        metrics: AnnotatorMetrics,
    ) -> None:
        self._client, self._info, self._options = client, info, options
        self._writer, self.summary, self._progress, self._metrics = writer, summary, progress, metrics
        self._said = time.monotonic()  # when the log last had a progress event
        self._in_flight: dict[asyncio.Task[Sequence[Answered]], Request] = {}
        self._stop = asyncio.Event()
        for name, what, value in (
            ("images_remaining", "Images without rows; NaN where their number is not known", self._remaining),
            ("seconds_left", "Until all have rows, at the rate of late; NaN while it is too early", self._left_s),
            ("requests_in_flight", "Requests for a batch of images", lambda: len(self._in_flight)),
            ("rows_waiting", "Rows that are not in a shard yet", lambda: writer.buffered),
            ("shards_written", "Shards that this session wrote", lambda: writer.shards),
        ):
            metrics.watch(name, what, value)

    async def run(self, work: Iterator[Request]) -> Summary:
        started = time.monotonic()
        summary, info = self.summary, self._info
        event("start", label_run=summary.label_run, dataset=summary.dataset, engine=info.engine, model=info.model,
              prompt_version=info.prompt_version, parts=info.parts, to_do=self._progress.total)  # fmt: skip
        try:
            await self._work_through(work, started)
        except BaseException as err:
            told = {"what": err.what, "fix": err.fix} if isinstance(err, DgreidError) else {"what": type(err).__name__}
            event("failed", **told, **self._counts())
            raise
        event("end", interrupted=summary.interrupted, **self._counts())
        return summary

    async def _work_through(self, work: Iterator[Request], started: float) -> None:
        try:
            with _on_signals(self._interrupt):
                while not self._stop.is_set():
                    request = await asyncio.to_thread(next, work, None)
                    if request is None:
                        break
                    self._in_flight[asyncio.ensure_future(request())] = request
                    while len(self._in_flight) >= self._client.connections:
                        await self._collect()
                while self._in_flight:
                    await self._collect()
        finally:
            for task in self._in_flight:
                task.cancel()
            for result in await asyncio.gather(*self._in_flight, return_exceptions=True):
                if not isinstance(result, BaseException):  # answered while another request failed
                    self._write_answered(result)
            self._write_arrived()
            self._writer.flush()
            self.summary.seconds = time.monotonic() - started
            self.summary.interrupted = self._stop.is_set()
        self._refuse_failures(least=1)

    def _remaining(self) -> float:
        return math.nan if self._progress.total is None else self._progress.total - self.summary.done_now

    def _left_s(self) -> float:
        left = self._progress.left_s()
        return math.nan if left is None else left

    def _counts(self) -> dict[str, object]:
        summary, progress = self.summary, self._progress
        rate, left = progress.per_s(), progress.left_s()
        return {
            "done_now": summary.done_now,
            "to_do": progress.total,
            "failed": dict(summary.failed),
            "images_per_s": rate and round(rate, 2),
            "seconds_left": None if left is None else round(left, 1),
            "prompt_tokens": summary.prompt_tokens,
            "completion_tokens": summary.completion_tokens,
            "shards": self._writer.shards,
            "in_flight": len(self._in_flight),
        }

    def _say_progress(self) -> None:
        if time.monotonic() - self._said >= PROGRESS_S:
            self._said = time.monotonic()
            event("progress", **self._counts())

    async def _collect(self) -> None:
        """Wait until a request ends, and write what was answered meanwhile.

        Raises DgreidError when nothing is answered for `stall_s`.
        """
        waited = 0.0
        step = min(self._options.shard_seconds, self._options.stall_s, ARRIVED_S, WAIT_LINE_S)
        while True:
            done, _ = await asyncio.wait(self._in_flight, timeout=step, return_when=asyncio.FIRST_COMPLETED)
            waited = 0.0 if self._write_arrived() else waited + step
            if self._stop.is_set():
                self._writer.flush()  # a second signal ends the process
            self._writer.flush_if_due()
            self._say_progress()
            if done:
                break
            if waited >= self._options.stall_s:
                raise DgreidError(
                    f"nothing was answered for {waited:.0f} s; {len(self._in_flight)} requests are in flight",
                    fix="see the logs of the labelling service and of vLLM; run the same command to resume",
                )
            note = f"no answer for {waited:.0f} s, {len(self._in_flight)} requests in flight"
            self._progress.advance(0, note=note if waited >= WAIT_LINE_S else "")
        self._progress.advance(0, note="")
        failures = []
        for task in done:  # all of them are written before the failure of one is raised
            del self._in_flight[task]
            if (failure := task.exception()) is None:
                self._write_answered(task.result())
            else:
                failures.append(failure)
        if failures:
            raise failures[0]
        if self._stop.is_set():
            self._writer.flush()
        self._refuse_failures(least=self._options.failed_share_after)

    def _interrupt(self) -> None:
        """What was answered is safe from here on, whatever becomes of the requests in flight."""
        self._stop.set()
        try:
            self._write_arrived()
            self._writer.flush()
        except DgreidError as err:  # tried again at the end, where it is raised
            log.warning("the answers so far are not written yet: %s", err.what)
        log.warning(
            "interrupted: %d requests in flight are finished; a second signal ends this at once", len(self._in_flight)
        )

    def _write_arrived(self) -> int:
        """Write what was answered of requests that have not ended; the number of images."""
        taken = [request.take() for request in self._in_flight.values()]
        for answered in taken:
            self._write_answered(answered)
        return sum(map(len, taken))

    def _write_answered(self, answered: Sequence[Answered]) -> None:
        for item, answer in answered:
            if answer is None:
                self._write_unreadable(item)
            else:
                self._write(item, answer)

    def _write(self, item: Item, answer: ImageAnswer) -> None:
        self._writer.add(answered_rows(item.row, answer, item.parts, self.summary.label_run, self._info))
        failure = self.summary.count(answer)
        self._metrics.count(answer)
        if failure:
            self._say_failed(item, failure)
        self._progress.advance(failure=failure)

    def _say_failed(self, item: Item, status: LabelStatus) -> None:
        event("image_failed", path=item.row.path, image_id=item.row.image_id, status=str(status))

    def _write_unreadable(self, item: Item) -> None:
        parts = [part for part in self._info.parts if part in item.parts]
        self._writer.add(unreadable_rows(item.row, item.unreadable, parts, self.summary.label_run, self._info))
        self.summary.done_now += 1
        self.summary.failed[LabelStatus.UNREADABLE] += 1
        self._metrics.count_unreadable()
        self._say_failed(item, LabelStatus.UNREADABLE)
        self._progress.advance(failure=LabelStatus.UNREADABLE)

    def _refuse_failures(self, least: int) -> None:
        summary = self.summary
        if summary.asked < least or summary.failed_share <= self._options.failed_share_limit:
            return
        kinds = ", ".join(f"{kind} {count}" for kind, count in summary.failed.most_common())
        raise DgreidError(
            f"{summary.failed_share:.0%} of {summary.asked} images failed ({kinds}); "
            f"the limit is {self._options.failed_share_limit:.0%}",
            fix="see the answers (dgreid sql <data set> --query failures), remove the cause, retry with --retry-failed",
        )


def _of_dataset(items: Iterable[Item], dataset: str) -> Iterator[Item]:
    for item in items:
        if (row := item.row).dataset != dataset:
            raise DataError(
                f"the manifest of {dataset} has a row of {row.dataset}", path=row.path, fix="scan the data set again"
            )
        yield item


@contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM calls `stop`; a second one has its default effect."""
    loop = asyncio.get_running_loop()
    kinds = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()

    def first() -> None:
        for kind in kinds:
            loop.remove_signal_handler(kind)
        stop()

    for kind in kinds:
        loop.add_signal_handler(kind, first)
    try:
        yield
    finally:
        for kind in kinds:
            loop.remove_signal_handler(kind)
