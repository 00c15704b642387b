"""Dynamic batching: single questions are answered in batches in a worker thread."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class MicroBatches(Generic[Task, Result]):
    """Whatever arrives while a batch runs goes into the next one; no batch waits to fill up.

    Args:
        run: returns the results of a batch, in order; called in one thread, one batch at a time.
        kind: only tasks of the same kind share a batch.
        limit: largest number of tasks in one batch.
    """

    def __init__(
        self, run: Callable[[Sequence[Task]], Sequence[Result]], kind: Callable[[Task], Hashable], limit: int
    ) -> None:
        self._run, self._kind, self._limit = run, kind, limit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="micro-batches")
        self._waiting: list[tuple[Task, asyncio.Future[Result]]] = []
        self._work: asyncio.Task[None] | None = None

    async def ask(self, task: Task) -> Result:
        """The result of one task. Raises what `run` raises for its batch."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((task, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._drain())
        return await future

    async def close(self) -> None:
        """Cancel waiting tasks; a running batch is finished."""
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
        if self._work is not None:
            await asyncio.gather(self._work, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def _drain(self) -> None:
        await asyncio.sleep(0)  # tasks that start together share a batch
        while batch := self._next_batch():
            tasks = [task for task, _ in batch]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, tasks)
            except Exception as err:  # re-raised in every caller of the batch
                for _, future in batch:
                    if not future.done():
                        future.set_exception(err)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():  # cancelled, e.g. by its deadline
                    future.set_result(result)

    def _next_batch(self) -> list[tuple[Task, asyncio.Future[Result]]]:
        """The oldest task that is not cancelled, and the next ones of its kind."""
        wanted = [entry for entry in self._waiting if not entry[1].done()]
        batch = [entry for entry in wanted if self._kind(entry[0]) == self._kind(wanted[0][0])][: self._limit]
        taken = {id(future) for _, future in batch}
        self._waiting = [entry for entry in wanted if id(entry[1]) not in taken]
        return batch
