"""`report`: one run as JSON, Markdown and a self-contained HTML page."""

from typing import Annotated

import typer

from pipelines.runs import newest_run, run_folder
from shared.workspace import Workspace


def report(
    run: Annotated[str | None, typer.Option(help="name or path of the run; default: the newest")] = None,
    images: Annotated[bool, typer.Option(help="put the people's pictures into the HTML page")] = True,
) -> None:
    """Write report.json, report.md and report.html into the run folder."""
    from reid.report.write import write_report

    workspace = Workspace.from_environment()
    paths = write_report(run_folder(workspace, run) if run else newest_run(workspace), workspace, images=images)
    for path in (paths.json, paths.markdown, paths.html):
        typer.echo(f"wrote {path}")
