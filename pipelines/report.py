"""`report`: one run as JSON, Markdown and a self-contained HTML page."""

from typing import Annotated

import typer

from pipelines.runs import newest_run, run_folder
from pipelines.terminal import say
from shared.workspace import Workspace


def report(
    run: Annotated[str | None, typer.Option(help="name or path of the run; default: the newest")] = None,
    images: Annotated[bool, typer.Option(help="put the people's pictures into the HTML page")] = True,
) -> None:
    """Write report.json, report.md and report.html into the run folder."""
    workspace = Workspace.from_environment()
    folder = run_folder(workspace, run) if run else newest_run(workspace)

    from reid.report.write import write_report  # imports torch

    paths = write_report(folder, workspace, images=images)
    for path in (paths.json, paths.markdown, paths.html):
        say(f"wrote {path}")
