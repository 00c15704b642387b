"""Worker processes for rendering: one OpenCV thread each, results in order, ended with their parent."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import cv2

Result = TypeVar("Result")


def ordered_results(work: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """`work(*call)` for every call, in the order of the calls; in this process with one worker or one call."""
    if workers == 1 or len(calls) < 2:
        for call in calls:
            yield work(*call)
        return
    # spawn, not fork: the parent may already run threads of OpenCV or torch, whose locks a fork would copy
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(calls)), mp_context=context, initializer=_prepare_worker) as pool:
        yield from pool.map(work, *zip(*calls, strict=True))  # cancels what is pending when the caller stops early


def _prepare_worker() -> None:
    cv2.setNumThreads(1)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End with the parent: a worker whose parent was killed would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
