"""How the commands print: other people's text is escaped, tables are shown whole, commands are named as they were
called."""

import os
import re
import sys
from collections.abc import Iterable, Sequence

import typer

from shared.terminal import printable

MAX_CELL = 10_000  # characters of a table's cell
_CALLED_AS = "DGREID_CALLED_AS"  # set by the Makefile, whose users have no `dgreid` on their PATH
_COMMAND = re.compile(r"(?<![\w./-])dgreid (?=[a-z])")


def as_called(text: str) -> str:
    """Text whose commands (`dgreid label viper`) can be run as they are printed: under make, by the installed path."""
    called_as = os.environ.get(_CALLED_AS)
    return _COMMAND.sub(lambda _: f"{called_as} ", text) if called_as else text


def say(text: str, *, err: bool = False) -> None:
    """Print lines of text."""
    typer.echo(printable(as_called(text), keep="\n"), err=err)


def cut_cell(text: str) -> str:
    """The text of a table's cell, which a person reads: a very long one takes minutes to fold and is cut."""
    more = len(text) - MAX_CELL
    return f"{text[:MAX_CELL]}... and {more:,} more characters" if more > 0 else text


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print a table whole: in a pipe as wide as it is; on a terminal folded, or a block a row when it is far wider."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    def cell(value: object) -> Text:
        return Text("" if value is None else printable(cut_cell(str(value))))

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
