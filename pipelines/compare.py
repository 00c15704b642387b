"""`compare`: scored runs side by side, with mean and deviation over the seeds."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.runs import run_folder
from pipelines.terminal import print_table, say
from shared.files import write_text
from shared.workspace import Workspace

LONGEST_NAME = 200  # of the page's file, without its ending


def compare(
    runs: Annotated[list[str], typer.Argument(help="names or paths of scored runs; seeds of one setting are averaged")],
    out: Annotated[Path | None, typer.Option(help="a JSON file for the same numbers unrounded")] = None,
    page: Annotated[
        Path | None,
        typer.Option(help="the HTML page; default for two runs and more: RUNS_ROOT/compare/<run>+<run>.html"),
    ] = None,
    images: Annotated[bool, typer.Option(help="put the people's pictures into the HTML page")] = True,
) -> None:
    """Mean and standard deviation of the scores over runs that differ in the seed alone, in percent.

    For two runs and more also a page: paired tests, curves, cameras, and the queries that differ most.
    """
    workspace = Workspace.from_environment()
    folders = [run_folder(workspace, name) for name in runs]

    from reid.evaluation.comparison import compare_runs, comparison_table  # imports torch

    groups = compare_runs(folders)
    print_table(*comparison_table(groups))
    if len(folders) > 1 or page:
        from reid.report.compare import write_comparison

        names = [folder.absolute().name for folder in folders]
        path = page or workspace.runs_root / "compare" / f"{'+'.join(names)[:LONGEST_NAME]}.html"
        for sentence in write_comparison(folders, workspace, path, images=images):
            say(f"not on the page: {sentence}")
        say(f"wrote {path}")
    if out:
        write_text(out, json.dumps(groups, indent=2) + "\n")
        say(f"wrote {out}")
