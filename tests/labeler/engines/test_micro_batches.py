"""Batches form from what waits, keep order and kinds apart, and fail alone."""

import asyncio
import threading

import pytest

from labeler.engines.micro_batches import MicroBatches


class Recorder:
    """Doubles numbers; the first batch waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, tasks):
        self.batches.append(list(tasks))
        assert self.go.wait(10)
        if -1 in tasks:
            raise ValueError("minus one")
        return [2 * task for task in tasks]


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_what_waits_becomes_the_next_batch() -> None:
    run = Recorder()
    batches = MicroBatches(run, kind=lambda task: task % 2, limit=3)
    first = asyncio.create_task(batches.ask(0))
    await until(lambda: run.batches)
    rest = [asyncio.create_task(batches.ask(task)) for task in (1, 2, 3, 4, 5, 7, 9, 6)]
    await asyncio.sleep(0)
    run.go.set()
    assert await asyncio.gather(first, *rest) == [0, 2, 4, 6, 8, 10, 14, 18, 12]
    assert run.batches == [[0], [1, 3, 5], [2, 4, 6], [7, 9]]
    await batches.close()


async def test_tasks_started_together_are_asked_together() -> None:
    run = Recorder()
    run.go.set()
    batches = MicroBatches(run, kind=lambda task: None, limit=8)
    assert await asyncio.gather(*map(batches.ask, range(8))) == list(range(0, 16, 2))
    assert len(run.batches) == 1
    await batches.close()


async def test_a_failed_batch_fails_for_its_tasks_only() -> None:
    run = Recorder()
    run.go.set()
    batches = MicroBatches(run, kind=lambda task: task > 0, limit=2)
    results = await asyncio.gather(batches.ask(-1), batches.ask(0), batches.ask(1), return_exceptions=True)
    assert [isinstance(result, ValueError) for result in results] == [True, True, False] and results[2] == 2
    assert await batches.ask(4) == 8
    await batches.close()


async def test_a_task_whose_asker_has_left_is_not_run() -> None:
    run = Recorder()
    batches = MicroBatches(run, kind=lambda task: None, limit=1)
    first = asyncio.create_task(batches.ask(1))
    await until(lambda: run.batches)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(batches.ask(2), 0.01)
    last = asyncio.create_task(batches.ask(3))
    await asyncio.sleep(0)
    run.go.set()
    assert (await first, await last) == (2, 6) and run.batches == [[1], [3]]
    await batches.close()


async def test_closing_forgets_what_waits() -> None:
    run = Recorder()
    batches = MicroBatches(run, kind=lambda task: None, limit=1)
    running = asyncio.create_task(batches.ask(1))
    await until(lambda: run.batches)
    waiting = asyncio.create_task(batches.ask(2))
    await asyncio.sleep(0)
    closing = asyncio.create_task(batches.close())
    await asyncio.sleep(0)
    run.go.set()
    await closing
    assert await running == 2 and run.batches == [[1]]
    with pytest.raises(asyncio.CancelledError):
        await waiting
