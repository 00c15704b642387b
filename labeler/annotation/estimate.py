"""What labelling the rest of a data set will cost: a sample of it is asked about, at the run's own concurrency, and the
answers are thrown away."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path

from labeler.annotation.annotate import AnnotateOptions
from labeler.annotation.backlog import Backlog
from labeler.annotation.client import GroundingClient
from labeler.annotation.label_run import default_label_run, finished_parts
from labeler.annotation.ray_cluster import RayCluster
from labeler.grounding.answers import ImageAnswer
from shared.schemas import ImageStatus, ManifestRow

SAMPLE = 256  # images asked about ...
SAMPLE_S = 60.0  # ... begun within this time


@dataclass(frozen=True)
class Estimate:
    """Counts are of images; identical files are one."""

    label_run: str
    done_before: int
    remaining: int
    unreadable: int  # of the remaining: not sent
    sample: int
    failed: int  # of the sample
    images_per_s: float | None  # None: nothing was asked
    prompt_tokens: float  # of one image
    completion_tokens: float

    @property
    def asked(self) -> int:
        return self.remaining - self.unreadable

    @property
    def seconds(self) -> float | None:
        return self.asked / self.images_per_s if self.images_per_s else None

    def table(self) -> list[tuple[str, str]]:
        lines = [
            ("label run", self.label_run),
            ("done before", f"{self.done_before:,}"),
            ("to do", f"{self.remaining:,}"),
            *([("of them unreadable, not sent", f"{self.unreadable:,}")] if self.unreadable else []),
            ("measured on", f"{self.sample:,} images, {self.failed:,} failed"),
        ]
        if self.images_per_s and self.seconds is not None:
            lines += [
                ("images/s", f"{self.images_per_s:,.1f}"),
                ("time", f"{timedelta(seconds=round(self.seconds))} ({self.seconds / 3600:,.2f} hours)"),
            ]
        if self.prompt_tokens or self.completion_tokens:
            pairs = ((self.prompt_tokens, "prompt"), (self.completion_tokens, "answer"))
            lines += [
                ("tokens of an image", ", ".join(f"{count:,.0f} {kind}" for count, kind in pairs)),
                ("tokens", ", ".join(f"{count * self.asked:,.0f} {kind}" for count, kind in pairs)),
            ]
        return lines


async def estimate(
    client: GroundingClient | RayCluster,
    rows: Iterable[ManifestRow],
    dataset_root: Path,
    dataset: str,
    labels_root: Path,
    label_run: str | None = None,
    options: AnnotateOptions | None = None,
    *,
    sample: int = SAMPLE,
    sample_s: float = SAMPLE_S,
) -> Estimate:
    """Measure a sample spread over the remaining images; no row is written.

    The rate counts from the first answers on, so that loading a model is not in it. Raises as `annotate` does.
    """
    options = options or AnnotateOptions()
    await client.wait_ready(options.ready_timeout_s)
    info = await client.info()
    label_run = label_run or default_label_run(info)
    finished = finished_parts(labels_root, label_run, dataset, info.parts, final_only=options.retry_failed)
    backlog = Backlog(rows, info.parts, finished)
    remaining = backlog.remaining
    unreadable = sum(item.row.status != ImageStatus.OK for item in backlog)
    step = max(1, (remaining - unreadable) // sample)
    readable = (item for item in backlog if item.row.status == ImageStatus.OK)
    chosen = islice(readable, 0, step * sample, step)
    work = client.requests(chosen, dataset_root, options.batch_images)
    answers: list[ImageAnswer] = []
    moments: list[tuple[float, int]] = []
    started = time.monotonic()
    reading = asyncio.Lock()

    async def asker() -> None:
        while time.monotonic() - started < sample_s:
            async with reading:
                request = await asyncio.to_thread(next, work, None)
            if request is None:
                return
            if answered := [answer for _, answer in await request() if answer]:
                answers.extend(answered)
                moments.append((time.monotonic(), len(answers)))

    await asyncio.gather(*(asker() for _ in range(client.connections)))
    return Estimate(
        label_run,
        backlog.done_before,
        remaining,
        unreadable,
        len(answers),
        sum(answer.failure is not None for answer in answers),
        _rate(started, moments),
        sum(answer.prompt_tokens for answer in answers) / max(1, len(answers)),
        sum(answer.completion_tokens for answer in answers) / max(1, len(answers)),
    )


def _rate(started: float, moments: list[tuple[float, int]]) -> float | None:
    """Images per second between the first and the last answers; of a single batch, from its question on."""
    if not moments:
        return None
    (first, before), (last, done) = moments[0], moments[-1]
    if last <= first or len(moments) < 3:
        return done / max(last - started, 1e-9)
    return (done - before) / (last - first)
