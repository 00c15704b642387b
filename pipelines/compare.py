"""`compare`: scored runs side by side, with mean and deviation over the seeds."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipelines.runs import run_folder
from shared.files import write_text
from shared.workspace import Workspace


def compare(
    runs: Annotated[list[str], typer.Argument(help="names or paths of scored runs; seeds of one setting are averaged")],
    out: Annotated[Path | None, typer.Option(help="a JSON file for the same numbers unrounded")] = None,
) -> None:
    """Mean and standard deviation of the scores over runs that differ in the seed alone, in percent."""
    workspace = Workspace.from_environment()
    folders = [run_folder(workspace, name) for name in runs]

    from reid.evaluation.comparison import compare_runs, comparison_table  # imports torch

    groups = compare_runs(folders)
    header, rows = comparison_table(groups)
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    if out:
        write_text(out, json.dumps(groups, indent=2) + "\n")
        typer.echo(f"wrote {out}")
