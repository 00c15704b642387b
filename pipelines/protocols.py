"""`protocols`: the protocols of published tables, and which of them can be run with the data sets under DATA_ROOT."""

from typing import Annotated

import typer

from pipelines.terminal import print_table, say
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
    rows = [
        (
            entry.suite,
            entry.protocol.name,
            f"{entry.paper.mean_ap:.1f} / {entry.paper.rank_1:.1f}" if entry.paper else "",
            f"missing: {', '.join(entry.missing)}" if entry.missing else "all there",
        )
        for entry in entries
    ]
    print_table(("suite", "protocol", "paper mAP / Rank-1", "data sets"), rows, title="published protocols")
    ready = next((entry.protocol.name for entry in entries if not entry.missing), None)
    say(f"next: dgreid train {ready}" if ready else "next: dgreid datasets (says where to put data sets)")
