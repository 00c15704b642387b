"""Progress of every long job: done/total, rate, time left, failures by kind.

On a terminal a bar is redrawn in place; in a log file a line appears every few seconds.
"""

import sys
import time
from collections import Counter, deque
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from shared.terminal import printable

if TYPE_CHECKING:
    from rich import progress as rich_progress

LOG_INTERVAL_S = 10.0
RECENT_SHARE = 0.25  # of the time so far is what the rate is measured over: jobs speed up and slow down ...
FEW = 200  # moments at which items finished are too few for that: then it is over the last half
RECENT_S = 30.0  # ... and at least this long, for items finish many at a time
SAMPLES = 1000  # of the count over that time; about twice as many are kept


class Pace:
    """How fast items are finished lately, from when the first ones were: what came before is start-up."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()  # (time in seconds, items finished by then)
        self._started: float | None = None

    def note(self, now: float, done: int) -> None:
        """`done` items in all are finished at `now` (seconds of any steady clock)."""
        if self._started is None:
            self._started = now
        elapsed = now - self._started
        span, longest = max(RECENT_S, RECENT_SHARE * elapsed), max(RECENT_S, elapsed / 2)
        if len(self._samples) >= 2 and now - self._samples[-2][0] < span / SAMPLES:
            self._samples[-1] = (now, done)  # samples this near tell nothing apart
        else:
            self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[1][0] >= (span if len(self._samples) > FEW else longest):
            self._samples.popleft()

    def per_s(self, now: float) -> float | None:
        """Items per second; None before two moments at which items were finished."""
        if len(self._samples) < 2:
            return None
        (first, before), (last, done) = self._samples[0], self._samples[-1]
        late = now - last > max(RECENT_S, last - first)  # nothing finishes any more: the rate sinks
        seconds = (now if late else last) - first
        return (done - before) / seconds if seconds > 0 else None


class Progress:
    """Counts finished items; use as a context manager.

    Args:
        what: what is being done, e.g. "label viper".
        total: number of items; None when it is not known beforehand.
        unit: what one item is, e.g. "images".
        shown: False counts without printing, in all but one of several processes that work together.
    """

    def __init__(self, what: str, total: int | None, unit: str = "images", *, shown: bool = True) -> None:
        self.what, self.total, self.unit, self.shown = printable(what), total, unit, shown
        self.done = 0
        self.failures: Counter[str] = Counter()
        self._note = ""
        self._pace = Pace()
        self._started = self._logged = time.monotonic()
        self._bar: rich_progress.Progress | None = None

    def __enter__(self) -> Self:
        if self.shown and sys.stderr.isatty():
            self._bar = _bar()
            self._bar.add_task(self.what, total=self.total, unit=self.unit, told="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        if self.shown:
            print(self.line(final=True), file=sys.stderr, flush=True)

    def advance(self, count: int = 1, *, failure: str | None = None, note: str | None = None) -> None:
        """Count finished items, under the failure kind if they failed; `note` is shown at the line's end."""
        self.done += count
        if failure:
            self.failures[failure] += count
        if note is not None:
            self._note = printable(note)
        now = time.monotonic()
        if count:
            self._pace.note(now, self.done)
        if self._bar:
            told = " · ".join(self._rate_told() + self._told())
            self._bar.update(self._bar.task_ids[0], completed=self.done, told=told)
        elif self.shown and now - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            print(self.line(), file=sys.stderr, flush=True)

    def per_s(self) -> float | None:
        """Items per second lately; None while it is too early to say."""
        return self._pace.per_s(time.monotonic())

    def left_s(self) -> float | None:
        """Seconds until the rest is done at the rate of late; None when that cannot be said."""
        rate = self.per_s()
        return (self.total - self.done) / rate if self.total is not None and rate else None

    def line(self, *, final: bool = False) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        words = [f"{self.what}: {self.done}" + (f"/{self.total}" if self.total is not None else "") + f" {self.unit}"]
        if final:
            words += [f"{self.done / elapsed:,.1f}/s", f"in {timedelta(seconds=round(elapsed))}"]
        else:
            words += self._rate_told()
        return " · ".join(words + self._told())

    def _rate_told(self) -> list[str]:
        rate, left = self.per_s(), self.left_s()
        words = [] if rate is None else [f"{rate:,.1f}/s"]
        return words if left is None else [*words, f"{timedelta(seconds=round(left))} left"]

    def _told(self) -> list[str]:
        return [f"{kind} {count}" for kind, count in sorted(self.failures.items())] + [self._note] * bool(self._note)


def _bar() -> "rich_progress.Progress":
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[unit]}", markup=False),
        progress.TextColumn("{task.fields[told]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
