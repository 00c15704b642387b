"""`sql`: ask the labels of a data set with SQL, or run one of the canned quality queries."""

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipelines.datasets import split_names
from pipelines.terminal import cut_cell, emit, print_table, say
from shared.errors import ConfigError, DataError, UsageError
from shared.files import write_text
from shared.labels import connect, corrected_runs, label_runs, label_shards
from shared.terminal import printable
from shared.workspace import Workspace

MAX_ROWS = 200  # of a table on a terminal

Form = Literal["table", "csv", "json", "markdown", "parquet"]


def sql(
    dataset: Annotated[
        str | None, typer.Argument(help="data set name, or several joined by +; without it: the canned queries")
    ] = None,
    query: Annotated[
        str | None, typer.Argument(help="one SELECT over parts, labels, label_rows, manifest; or a canned query's name")
    ] = None,
    option: Annotated[str | None, typer.Option("--query", "-q", help="the same as QUERY")] = None,
    form: Annotated[Form, typer.Option("--format", "-f", help="how the rows are written")] = "table",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write to this file; needed for parquet")] = None,
) -> None:
    """Ask the labels of a data set with SQL; without a query, list the canned ones.

    Views: parts (labels with identity, camera, split, relative box and area), labels (the newest row of each image and
    part), label_rows (all rows, earlier attempts too), manifest (the files). Columns: `describe parts`.
    """
    from labeler.quality import list_queries, run_query

    query = query or option
    if form == "parquet" and out is None:
        raise ConfigError("--format parquet needs a file", fix="name it with --out <file>.parquet")
    workspace = Workspace.from_environment()
    names = split_names(dataset or "", workspace) if dataset or query else []
    if not query:
        title = 'canned queries: dgreid sql <name> --query <query>, or --query "select ..."'
        print_table(("query", "what it tells"), list(list_queries().items()), title=title)
        return
    shards = [shard for name in names for shard in label_shards(workspace.labels, dataset=name)]
    if not shards:
        raise DataError(f"{dataset} has no labels yet", path=workspace.labels, fix=f"dgreid label {dataset}")
    manifests = [path for path in map(workspace.manifest, names) if path.is_file()]
    for run in sorted(corrected_runs(workspace.labels, label_runs(workspace.labels, names))):
        say(f"label run {run} has been corrected: training uses the run that corrects it", err=True)
    connection = connect(manifests=manifests, labels=shards, only_these_files=True)
    with ThreadPoolExecutor(1) as pool:  # here DuckDB would not see Ctrl-C before the query's end
        asked = pool.submit(run_query, connection, query, shards=shards, as_text=form != "parquet")
        try:
            found = asked.result()
        except KeyboardInterrupt:
            connection.interrupt()
            raise
    if form == "parquet":
        from shared.parquet import write_table

        assert out is not None
        try:
            write_table(found, out)
        except NotImplementedError as err:  # Arrow's
            raise UsageError(f"Parquet has no such type ({err})", fix="cast(<column> as varchar)") from err
    else:
        columns = list(found.column_names)
        try:
            rows = list(zip(*(column.to_pylist() for column in found.columns), strict=True))
        except (OverflowError, ValueError) as err:
            raise UsageError(
                f"a time or a value inside a list or struct cannot be shown ({err})", fix="cast(<column> as varchar)"
            ) from err
        _write(columns, rows, form, out)
    if out:
        say(f"wrote {out}: {found.num_rows:,} rows", err=True)
    elif not found.num_rows:
        say("the query gave no rows", err=True)


def _write(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: Form, out: Path | None) -> None:
    if form == "table" and out is None:
        shown = rows[:MAX_ROWS] if sys.stdout.isatty() else rows
        print_table(columns, [[_short(value) for value in row] for row in shown])
        if len(shown) < len(rows):
            say(f"{len(shown)} of {len(rows):,} rows shown; all of them: --out, --format or a pipe", err=True)
        return
    texts = {"csv": _as_csv, "json": _as_json, "markdown": _as_markdown, "table": _as_plain}
    text = texts[form](columns, rows)
    if out:
        write_text(out, text)
    else:
        emit(text)


def _as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_plain(value) for value in row] for row in rows)
    return text.getvalue()


def _as_json(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if len(set(columns)) < len(columns):
        raise ConfigError("two columns have one name, which JSON cannot hold", fix="rename one in the query with `as`")
    lines = [json.dumps(dict(zip(columns, map(_jsonable, row), strict=True)), ensure_ascii=False) for row in rows]
    return "[" + ",".join(f"\n{line}" for line in lines) + "\n]\n"


def _as_markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return _tabulated(columns, rows, "github", {"|": r"\|", "<": "&lt;"})


def _as_plain(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return _tabulated(columns, rows, "simple", {})


def _tabulated(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: str, escapes: dict[str, str]) -> str:
    from tabulate import tabulate

    table = str.maketrans(escapes)
    cells = [[printable(cut_cell(_short(value))).translate(table) for value in row] for row in rows]
    heads = [printable(name).translate(table) for name in columns]
    return tabulate(cells, heads, tablefmt=form, disable_numparse=True) + "\n"


def _short(value: Any) -> str:
    """For people: six significant digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(_plain(value))


def _plain(value: Any) -> Any:
    """One cell: NULL as nothing, nested values as JSON."""
    if value is None:
        return ""
    if isinstance(value, list | dict | tuple):
        return json.dumps(_jsonable(value), ensure_ascii=False)
    return value.isoformat() if isinstance(value, date | datetime | time) else value


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        if value == value.to_integral_value():
            return int(value)
        return float(value) if Decimal(repr(float(value))) == value else str(value)  # never fewer digits
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | bool) else str(value)
