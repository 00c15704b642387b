"""`report`: one run as JSON, Markdown and a self-contained HTML page."""

from typing import Annotated

import typer

from pipelines.runs import newest_run, run_folder
from pipelines.terminal import say
from shared.workspace import Workspace


def report(
    run: Annotated[str | None, typer.Option(help="name or path of the run; default: the newest")] = None,
    images: Annotated[bool, typer.Option(help="put the people's pictures into the HTML page")] = True,
    replace: Annotated[
        bool, typer.Option("--replace", help="replace a page that shows more than can be found now")
    ] = False,
) -> None:
    """Write report.json, report.md and report.html into the run folder."""
    workspace = Workspace.from_environment()
    folder = run_folder(workspace, run) if run else newest_run(workspace)

    from reid.config import read_config
    from reid.report.write import write_report  # imports torch
    from reid.training.trackers import tell_trackers

    files = write_report(folder, workspace, images=images, replace=replace)
    written = [files.json, files.markdown, *([] if files.html_kept else [files.html])]
    tell_trackers(folder, read_config(folder), files=written)
    for sentence in files.missing:
        say(f"not in the report: {sentence}")
    for path in written:
        say(f"wrote {path}")
    if files.html_kept:
        say(f"kept {files.html} as it was: {files.html_kept}\n  fix: --replace writes the poorer page")
