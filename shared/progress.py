"""One progress line for every long job: done/total, rate, time left, failures by kind.

On a terminal the line is redrawn in place; in a log file a new line appears every few seconds.
"""

import sys
import time
from collections import Counter
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

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
        self.what, self.total, self.unit, self.shown = what, total, unit, shown
        self.done = 0
        self.failures: Counter[str] = Counter()
        self._note = ""
        self._started = self._logged = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        console = Console(stderr=True)
        if self.shown and console.is_terminal:
            self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        if self.shown:
            print(self.line(final=True), file=sys.stderr, flush=True)

    def advance(self, count: int = 1, *, failure: str | None = None, note: str | None = None) -> None:
        """Count finished items, under the failure kind if they failed; `note` is shown at the line's end."""
        self.done += count
        if failure:
            self.failures[failure] += count
        if note is not None:
            self._note = note
        now = time.monotonic()
        if self.shown and self._live is None and now - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            print(self.line(), file=sys.stderr, flush=True)

    def line(self, *, final: bool = False) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self.done / elapsed
        words = [f"{self.what}: {self.done}" + (f"/{self.total}" if self.total is not None else "") + f" {self.unit}"]
        words.append(f"{rate:,.1f}/s")
        if final:
            words.append(f"in {_duration(elapsed)}")
        elif self.total is not None and self.done:
            words.append(f"{_duration((self.total - self.done) / rate)} left")
        words += [f"{kind} {count}" for kind, count in sorted(self.failures.items())]
        if self._note:
            words.append(self._note)
        return " · ".join(words)

    def _render(self) -> Text:
        return Text(self.line(), overflow="ellipsis", no_wrap=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
