"""The exception tree: what went wrong, where, and what to do about it.

    DgreidError          exit code 1: the work could not be finished
    └── UsageError       exit code 2: what was asked for cannot be done as asked
        ├── ConfigError  a preset, an override or a protocol
        └── DataError    a data root, a data set, a label run that is not there

Commands turn any of these into one sentence on stderr and its exit code; nothing else may reach a user.
"""

from collections.abc import Iterable
from pathlib import Path

from shared.terminal import printable


class DgreidError(Exception):
    """A failure with its place and its remedy.

    Args:
        what: one sentence, without a full stop.
        fix: what the user can do, often a command.
        path: the file or folder concerned.
    """

    exit_code = 1

    def __init__(self, what: str, *, fix: str, path: Path | str | None = None) -> None:
        self.what, self.fix, self.path = what, fix, path
        where = "" if path is None else f" [{printable(path)}]"
        super().__init__(f"{what}{where}\n  fix: {fix}")


class UsageError(DgreidError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class DataError(UsageError):
    pass


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean 'viper'?)" for the known word nearest to a mistyped one, "" when none is near."""
    import difflib

    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""
