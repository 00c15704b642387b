"""`protocols`: the protocols that papers report on, and which of them can be run with what is under DATA_ROOT."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from shared.workspace import Workspace


def protocols(
    suite: Annotated[
        str | None, typer.Argument(help="single_source, leave_one_out or all_images; default: all")
    ] = None,
) -> None:
    """List the protocols of the published tables, the paper's scores and which data sets are missing."""
    from reid.protocols.published import suite_entries

    workspace = Workspace.from_environment()
    entries = suite_entries(workspace.data_root, suite)
    table = Table("suite", "PROTOCOL=", "paper mAP / Rank-1", "data sets", title="published protocols")
    for entry in entries:
        paper = f"{entry.paper.mean_ap:.1f} / {entry.paper.rank_1:.1f}" if entry.paper else ""
        there = f"[dim]missing: {', '.join(entry.missing)}[/dim]" if entry.missing else "[green]all there[/green]"
        table.add_row(entry.suite, entry.protocol.name, paper, there)
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
    ready = next((entry.protocol.name for entry in entries if not entry.missing), None)
    typer.echo(f"next: make train PROTOCOL={ready}" if ready else "next: make datasets says where to put data sets")
