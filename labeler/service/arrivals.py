"""Bodies of requests share a limit of bytes, and who sends slowly cannot keep others out."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import DgreidError


class BusyError(DgreidError):
    """A limit of what is in flight is reached; the same request may be served later."""


class Arrival:
    """One body: its bytes in memory, and the deadline of its arrival."""

    def __init__(self, arrivals: "Arrivals") -> None:
        self._arrivals = arrivals
        self.size = 0
        self.complete = self.evicted = False
        self.deadline: asyncio.Timeout | None = None

    def grow(self, count: int) -> None:
        """Count more bytes. Raises BusyError when there is no memory for them."""
        self._arrivals.make_room(self, count)
        self.size += count

    def evict(self) -> None:
        self.evicted = True
        self.size = 0
        if self.deadline is not None:
            self.deadline.reschedule(asyncio.get_running_loop().time())


class Arrivals:
    """All bodies that arrive or are being answered, oldest first.

    When they are too large together, the one that has been arriving for the longest time makes room: bodies of ordinary
    clients are there at once, so who sends slowly cannot keep them out.

    Args:
        limit: bytes of all of them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._all: dict[Arrival, None] = {}

    @contextmanager
    def one(self) -> Iterator[Arrival]:
        """One body, from its head to its answer."""
        arrival = Arrival(self)
        self._all[arrival] = None
        try:
            yield arrival
        finally:
            del self._all[arrival]

    def make_room(self, wants: Arrival, count: int) -> None:
        """Raises BusyError when `count` more bytes do not fit, and for bodies that had to make room for others."""
        while not wants.evicted and sum(one.size for one in self._all) + count > self._limit:
            arriving = (one for one in self._all if not one.complete and one.size)
            next(arriving, wants).evict()
        if wants.evicted:
            raise too_much()


def too_much() -> BusyError:
    return BusyError(
        "the requests in flight are too large together", fix="retry after the seconds in Retry-After, with fewer images"
    )
