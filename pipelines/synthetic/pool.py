"""Worker processes for the generator: one OpenCV thread each, results in order, gone when their parent is gone."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import cv2

Result = TypeVar("Result")


def ordered_results(work: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """`work(*call)` for every call, in the order of the calls; in this process when one worker is enough."""
    if workers == 1 or len(calls) < 2:
        for call in calls:
            yield work(*call)
        return
    # spawn, not fork: the parent may already run threads of OpenCV or torch, whose locks a fork would copy
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(calls)), mp_context=context, initializer=_prepare_worker) as pool:
        futures = [pool.submit(work, *call) for call in calls]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
