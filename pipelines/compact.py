"""`compact`: many small shards of a label run into few large ones."""

from typing import Annotated

import typer

from labeler.annotation.compaction import SHARD_ROWS
from pipelines.datasets import DatasetNames, split_names
from pipelines.terminal import print_table, say
from shared.errors import DataError
from shared.labels import corrected_runs, label_runs
from shared.workspace import Workspace


def compact(
    dataset: DatasetNames,
    label_run: Annotated[
        str | None, typer.Option(help="name of the label run; default: every run that no other one corrects")
    ] = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="rows of a shard")] = SHARD_ROWS,
) -> None:
    """Rewrite the small shards of a data set's labels into few large ones. No row is lost or changed.

    Readers see the same labels at every moment, and a killed compaction is finished by the next `compact` or `label`.
    """
    from labeler.annotation.compaction import compact as compact_run

    workspace = Workspace.from_environment()
    lines = []
    for name in split_names(dataset, workspace):
        runs = label_runs(workspace.labels, [name])
        if not runs or (label_run and label_run not in runs):
            raise DataError(f"there are no labels of {name}{f' in run {label_run}' if label_run else ''}",
                            path=workspace.labels, fix=f"dgreid label {name}")  # fmt: skip
        for run in (
            [label_run] if label_run else [run for run in runs if run not in corrected_runs(workspace.labels, runs)]
        ):
            done = compact_run(workspace.labels, run, name, shard_rows=shard_rows)
            lines.append((name, run, f"{done.rows:,}", f"{done.superseded:,}", f"{done.before:,} -> {done.after:,}",
                          f"{done.bytes_before / 1e6:,.1f} -> {done.bytes_after / 1e6:,.1f}"))  # fmt: skip
    print_table(("data set", "label run", "rows", "of earlier attempts", "shards", "MB"), lines)
    say("no row was changed")
