"""Progress of every long job: done/total, rate, time left, failures by kind.

On a terminal a bar is redrawn in place; in a log file a line appears every few seconds.
"""

import sys
import time
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from shared.terminal import printable

if TYPE_CHECKING:
    from rich import progress as rich_progress

LOG_INTERVAL_S = 10.0


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
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.done, told=" · ".join(self._told()))
        elif self.shown and now - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            print(self.line(), file=sys.stderr, flush=True)

    def line(self, *, final: bool = False) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self.done / elapsed
        words = [f"{self.what}: {self.done}" + (f"/{self.total}" if self.total is not None else "") + f" {self.unit}"]
        words.append(f"{rate:,.1f}/s")
        if final:
            words.append(f"in {timedelta(seconds=round(elapsed))}")
        elif self.total is not None and self.done:
            words.append(f"{timedelta(seconds=round((self.total - self.done) / rate))} left")
        return " · ".join(words + self._told())

    def _told(self) -> list[str]:
        return [f"{kind} {count}" for kind, count in sorted(self.failures.items())] + [self._note] * bool(self._note)


def _bar() -> "rich_progress.Progress":
    from rich import progress
    from rich.console import Console

    class Rate(progress.ProgressColumn):
        def render(self, task: progress.Task) -> str:
            return f"{task.speed or 0:,.1f}/s"

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[unit]}", markup=False),
        Rate(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[told]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
