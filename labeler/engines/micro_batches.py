"""Questions that come one by one, answered several at a time in a thread of their own."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class MicroBatches(Generic[Task, Result]):
    """Collects what waits while a batch is running into the next one: nobody waits for a batch to fill.

    Args:
        run: the results of a batch, in order; called in one thread, one batch at a time.
        kind: tasks are batched with others of the same kind only.
        limit: tasks in one batch.
    """

    def __init__(
        self, run: Callable[[Sequence[Task]], Sequence[Result]], kind: Callable[[Task], Hashable], limit: int
    ) -> None:
        self._run, self._kind, self._limit = run, kind, limit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="micro-batches")
        self._waiting: list[tuple[Task, asyncio.Future[Result]]] = []
        self._work: asyncio.Task[None] | None = None

    async def ask(self, task: Task) -> Result:
        """The result of one task. Raises what `run` raised for its batch."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((task, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._drain())
        return await future

    async def close(self) -> None:
        """Forget what waits; a batch that is running is waited for."""
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
        if self._work is not None:
            await asyncio.gather(self._work, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def _drain(self) -> None:
        await asyncio.sleep(0)  # tasks that were started together are asked together
        while batch := self._next_batch():
            tasks = [task for task, _ in batch]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, tasks)
            except Exception as err:  # whoever asked decides what a failure means
                for _, future in batch:
                    if not future.done():
                        future.set_exception(err)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():  # nobody waits any more: its deadline has passed
                    future.set_result(result)

    def _next_batch(self) -> list[tuple[Task, asyncio.Future[Result]]]:
        """The oldest task that is still wanted, and the next ones of its kind."""
        wanted = [entry for entry in self._waiting if not entry[1].done()]
        batch = [entry for entry in wanted if self._kind(entry[0]) == self._kind(wanted[0][0])][: self._limit]
        taken = {id(future) for _, future in batch}
        self._waiting = [entry for entry in wanted if id(entry[1]) not in taken]
        return batch
