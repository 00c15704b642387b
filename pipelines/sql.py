"""`sql`: ask the labels of a data set with SQL, or run one of the canned quality queries."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipelines.datasets import DatasetNames, split_names
from shared.errors import DataError
from shared.labels import connect, corrected_runs, label_runs, label_shards
from shared.workspace import Workspace

MAX_ROWS = 200


def sql(
    dataset: DatasetNames,
    query: Annotated[
        str | None, typer.Option(help="SQL over the views manifest, labels, label_rows; or a name")
    ] = None,
) -> None:
    """Without a query: list the canned ones."""
    from labeler.quality import list_queries, run_query

    workspace = Workspace.from_environment()
    names = split_names(dataset, workspace)
    if not query:
        _show_canned(list_queries())
        return
    shards = [shard for name in names for shard in label_shards(workspace.labels, dataset=name)]
    if not shards:
        raise DataError(f"{dataset} has no labels yet", path=workspace.labels, fix=f"make label DATASET={dataset}")
    manifests = [path for path in map(workspace.manifest, names) if path.is_file()]
    for run in sorted(corrected_runs(workspace.labels, label_runs(workspace.labels, names))):
        typer.echo(f"label run {run} has been corrected: training uses the run that corrects it", err=True)
    columns, rows = run_query(connect(manifests=manifests, labels=shards), query)
    _show(columns, rows)


def _show_canned(queries: dict[str, str]) -> None:
    table = Table("query", "what it tells", title='canned queries: make sql DATASET=... Q=<query>, or Q="select ..."')
    for name, description in queries.items():
        table.add_row(name, description)
    Console().print(table)


def _show(columns: list[str], rows: list[tuple[object, ...]]) -> None:
    table = Table(*columns)
    for row in rows[:MAX_ROWS]:
        table.add_row(*("" if value is None else _short(value) for value in row))
    wide().print(table)
    if len(rows) > MAX_ROWS:
        typer.echo(f"{MAX_ROWS} of {len(rows)} rows shown; add a limit or an aggregate")


def wide() -> Console:
    """A console that does not cut columns when the output goes to a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=220)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
