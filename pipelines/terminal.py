"""How the commands print: other people's text is escaped, tables are shown whole, commands are named as they were
called."""

import os
import re
import sys
from collections.abc import Iterable, Sequence

import typer

from shared.terminal import printable

_UNDER_MAKE = "DGREID_UNDER_MAKE"  # set by the Makefile
_POSITIONAL = ("DATASET", "PROTOCOL", "FILE", "SUITE", "RUNS", "ARGS")
_OPTIONS = {"LABELS": "--label-run", "RUN": "--run", "PRESET": "--preset", "ENGINE": "--engine", "URL": "--url"}
_OPTIONS |= {"FORMAT": "--format", "Q": "--query"}
_VALUE = r"""('[^']*'|"[^"]*"|<[^>]*>|[^\s;,)]+)"""
_SETTING = re.compile(rf"\b({'|'.join((*_POSITIONAL, *_OPTIONS))})={_VALUE}")

_COMMAND = re.compile(
    r"\bmake (bench-dg|cache|compare|datasets|demo|doctor|eval|export-labels|import-labels|import-masks|label|manifest|"
    r"protocols|report|serve|sql|train-clip|train-grounder|train)\b"
)


def as_called(text: str) -> str:
    """Texts name commands as make targets (`make label DATASET=viper`); without make they read `dgreid label viper`."""
    if os.environ.get(_UNDER_MAKE):
        return text
    text = re.sub(rf"(make import-labels [^;\n]*?)LABELS={_VALUE}", r"\1--corrects \2", text)
    text = _SETTING.sub(lambda found: _argument(found[1], found[2]), text)
    return _COMMAND.sub(r"dgreid \1", text)


def _argument(variable: str, value: str) -> str:
    if variable in ("ARGS", "RUNS"):
        return value.strip("'\"")
    return value if variable in _POSITIONAL else f"{_OPTIONS[variable]} {value}"


def say(text: str, *, err: bool = False) -> None:
    """Print lines of text."""
    typer.echo(printable(as_called(text), keep="\n"), err=err)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print a table whole: in a pipe as wide as it is; on a terminal folded, or a block a row when it is far wider."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    def cell(value: object) -> Text:
        return Text("" if value is None else printable(value))

    console = Console()
    if not console.is_terminal:
        console = Console(width=100_000)
    heads = [Column(cell(name), overflow="fold") for name in columns]
    if sum(len(name) + 3 for name in columns) <= console.width:
        table = Table(*heads, title=cell(title) if title else None)
        for row in rows:
            table.add_row(*map(cell, row))
    else:
        table = Table("column", Column("value", overflow="fold"), title=cell(title) if title else None)
        for row in rows:
            for name, value in zip(columns, row, strict=True):
                table.add_row(cell(name), cell(value))
            table.add_section()
    console.print(table)


def emit(text: str) -> None:
    """Print a machine-readable result: as it is into a file or pipe, escaped on a terminal."""
    sys.stdout.write(printable(text, keep="\n\t") if sys.stdout.isatty() else text)
    sys.stdout.flush()
