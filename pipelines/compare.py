"""`compare`: scored runs side by side, with mean and deviation over the seeds."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.runs import run_folder
from pipelines.terminal import print_table, say
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
    print_table(*comparison_table(groups))
    if out:
        write_text(out, json.dumps(groups, indent=2) + "\n")
        say(f"wrote {out}")
