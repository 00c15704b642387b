"""The time left that a labelling run shows at a quarter, a half and three quarters of its way, against its true end.

The annotator is the real one; its engine answers after seconds of a clock that jumps to the next event.
"""

import asyncio
import random
import selectors
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labeler.annotation.annotate import AnnotateOptions, annotate_with
from labeler.annotation.backlog import Answered, Item, Request
from labeler.grounding.answers import ImageAnswer, PartAnswer, ServiceInfo
from shared.schemas import PARTS, LabelStatus
from tests.rows import manifest_row

IMAGES = 20_000
INFO = ServiceInfo(
    engine="scripted", model="m", prompt_version="joint-1", parts=PARTS, max_images=64, max_body_bytes=1, max_requests=8
)
Latency = Callable[[float, int], float]  # (now, images) -> seconds for a request


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time is that of its events: what waits for nothing else does not wait."""

    def __init__(self) -> None:
        self.now = 0.0
        inner = selectors.DefaultSelector()
        super().__init__(inner)
        waiting = inner.select

        def select(timeout: float | None = None) -> Any:
            events = waiting(0)
            if not events and timeout:
                self.now += timeout
            return events

        inner.select = select  # type: ignore[method-assign]

    def time(self) -> float:
        return self.now


class Scripted:
    """A client with `connections` requests in flight, each for `batch` images."""

    service_metrics = None

    def __init__(self, latency: Latency, connections: int = 8, batch: int = 16) -> None:
        self.latency, self.connections, self.batch = latency, connections, batch

    async def wait_ready(self, timeout_s: float) -> float:
        return 1.0

    async def info(self) -> ServiceInfo:
        return INFO

    def requests(self, items: Iterable[Item], root: Path, batch_images: int) -> Iterator[Request]:
        for block in self._blocks(items):
            yield Request(partial(self._answer, block))

    def _blocks(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        rest = list(items)
        while rest:
            yield rest[: self.batch]
            rest = rest[self.batch :]

    async def _answer(self, block: list[Item]) -> list[Answered]:
        await asyncio.sleep(self.latency(asyncio.get_running_loop().time(), len(block)))
        parts = tuple(PartAnswer(part=part, status=LabelStatus.ABSENT, attempts=1) for part in PARTS)
        return [(item, ImageAnswer(image_id=item.row.image_id, width=1, height=1, parts=parts)) for item in block]


class LikeRay(Scripted):
    """Blocks come as actors finish them, two at once each; actors begin one after the other."""

    def __init__(self, latency: Latency, actors: int, every_s: float) -> None:
        super().__init__(latency, connections=1, batch=64)
        self.actors, self.every_s = actors, every_s

    def requests(self, items: Iterable[Item], root: Path, batch_images: int) -> Iterator[Request]:
        blocks = list(self._blocks(items))
        answered: asyncio.Queue[list[Answered]] = asyncio.Queue()

        async def actor(begins: float) -> None:
            await asyncio.sleep(begins)
            while blocks:
                await answered.put(await self._answer(blocks.pop(0)))

        async def first() -> list[Answered]:
            self.running = [asyncio.create_task(actor(slot // 2 * self.every_s)) for slot in range(2 * self.actors)]
            return await answered.get()

        return iter([Request(first), *(Request(answered.get) for _ in blocks[1:])])


def shown(client: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done_before: int = 0) -> list[float]:
    """Time left that the log's progress events say, divided by the true one, nearest to 1/4, 1/2, 3/4 of the run."""
    clock = Clock()
    time = SimpleNamespace(monotonic=clock.time)
    for module in ("shared.progress.time", "labeler.annotation.annotate.time"):
        monkeypatch.setattr(module, time)
    monkeypatch.setattr("labeler.annotation.annotate.PROGRESS_S", 0.0)
    told: list[tuple[float, float | None]] = []
    monkeypatch.setattr(
        "labeler.annotation.annotate.event",
        lambda kind, **fields: told.append((clock.now, fields["seconds_left"])) if kind == "progress" else None,
    )

    async def at_once(call: Callable[..., Any], *args: Any) -> Any:
        return call(*args)

    monkeypatch.setattr(asyncio, "to_thread", at_once)
    rows = [manifest_row(dataset="toy", path=f"{n}.jpg", image_id=f"{n:016x}") for n in range(IMAGES)]
    options = AnnotateOptions(shard_rows=10**6, shard_seconds=10**6)
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        if done_before:
            earlier = Scripted(lambda now, images: 0.01)
            runner.run(annotate_with(earlier, rows[:done_before], tmp_path, "toy", tmp_path, "r", options))
            told.clear()
        started = clock.now
        summary = runner.run(annotate_with(client, rows, tmp_path, "toy", tmp_path, "r", options))
        assert (summary.images, summary.done_before) == (IMAGES, done_before)
        whole = clock.now - started
    ratios = []
    for share in (0.25, 0.5, 0.75):
        at, left = min(told, key=lambda one: abs(one[0] - started - share * whole))
        assert abs(at - started - share * whole) < 0.05 * whole and left is not None
        ratios.append(left / (started + whole - at))
    return ratios


def around(seconds: float) -> Latency:
    """Requests of `seconds` for 16 images on average; a hard image takes several times as long as an easy one, and so
    does a busy server."""
    dice = random.Random(0)

    def latency(now: float, images: int) -> float:
        busy = dice.lognormvariate(-0.045, 0.3)
        return seconds / 16 * busy * sum(dice.lognormvariate(-0.32, 0.8) for _ in range(images))

    return latency


def warming_up(seconds: float, until_s: float, factor: float) -> Latency:
    """Slow by a factor until then: weights are read, kernels compiled, caches filled."""
    usual = around(seconds)
    return lambda now, images: usual(now, images) * (factor if now < until_s else 1)


def in_waves(seconds: float, every_s: float, factor: float) -> Latency:
    """Others use the model server, too: every other time it is slower by a factor."""
    usual = around(seconds)
    return lambda now, images: usual(now, images) * (factor if now // every_s % 2 else 1)


@pytest.mark.parametrize(
    "client",
    [
        Scripted(around(8.0)),
        Scripted(around(60.0), connections=4),
        Scripted(warming_up(8.0, until_s=60.0, factor=8)),
        Scripted(lambda now, images: 150.0 if now < 1 else 4.0),  # the first requests wait for the model
        Scripted(in_waves(30.0, every_s=60.0, factor=2.0)),
        LikeRay(around(8.0), actors=3, every_s=0.0),
        LikeRay(around(8.0), actors=3, every_s=30.0),
        LikeRay(around(40.0), actors=2, every_s=0.0),
    ],
    ids=["even", "slow", "warm-up", "long first", "waves", "ray", "ray, actors one by one", "ray, slow"],
)
def test_the_time_left_is_right_within_a_tenth(client: Scripted, tmp_path: Path, monkeypatch) -> None:
    assert shown(client, tmp_path, monkeypatch) == pytest.approx([1, 1, 1], abs=0.1)


@pytest.mark.parametrize("done_before", [4_000, 14_000])
def test_a_resumed_run_knows_its_time_too(done_before: int, tmp_path: Path, monkeypatch) -> None:
    client = Scripted(warming_up(20.0, until_s=30.0, factor=3))
    assert shown(client, tmp_path, monkeypatch, done_before) == pytest.approx([1, 1, 1], abs=0.1)
