"""SQL over labels: canned queries, and any other SELECT, over the views of `shared.labels.connect`."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import duckdb
import pyarrow as pa

from shared.errors import ConfigError, UsageError, did_you_mean
from shared.labels import read_label_table

_TEXT_TYPES = ("date", "time", "time_ns", "time with time zone", "interval", "bit", "blob", "bignum", "union")


def list_queries() -> dict[str, str]:
    """Names of the canned queries and what each tells (the first line of its file)."""
    return {name: text.splitlines()[0].removeprefix("--").strip() for name, text in sorted(_texts().items())}


def run_query(
    connection: duckdb.DuckDBPyConnection, query: str, *, shards: Sequence[Path] = (), as_text: bool = False
) -> pa.Table:
    """The result of a canned query, by name, or of one SELECT over `parts`, `labels`, `label_rows`, `manifest`.

    Args:
        shards: of the connection's labels; after a failure they are searched for a damaged one.
        as_text: columns of types that Python shows otherwise or not at all (24:00:00, dates before Christ, offsets of
            times, intervals, bits) become text as DuckDB writes it.

    Raises ConfigError for an unknown name, UsageError for SQL that fails, reads another file or is more than one
    SELECT (labels are read here, never written), DataError for a damaged shard.
    """
    text = query.strip()
    if text.isidentifier():
        if text not in (texts := _texts()):
            raise ConfigError(
                f"no canned query is called {text!r}{did_you_mean(text, texts)}",
                fix=f"choose one of: {', '.join(sorted(texts))}",
            )
        text = texts[text]
    try:
        statements = connection.extract_statements(text)
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise UsageError(
                "the query is not a single SELECT", fix="ask one question; --out writes the rows to a file"
            )
        found = connection.sql(statements[0])
        return (_with_texts(found) if as_text else found).to_arrow_table()
    except duckdb.Error as err:
        told = str(err).strip()[:500]
        if "disabled by configuration" in told or ("exists in the" in told and " extension" in told):
            raise UsageError(
                f"a query reads the labels and manifests of the data sets named, no other file, address or extension "
                f"({told.splitlines()[0]})",
                fix="join several data sets with +; write rows to a file with --out",
            ) from err
        if not isinstance(err, duckdb.ProgrammingError):
            for shard in shards:
                read_label_table(shard)
        raise UsageError(
            f"DuckDB says: {told}",
            fix="columns: `describe parts`, `describe labels`, `describe manifest`; canned queries: "
            + ", ".join(sorted(_texts())),
        ) from err


def _with_texts(found: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    columns = [
        f"cast(#{place} as varchar)" if kind.id in _TEXT_TYPES else f"#{place}"
        for place, kind in enumerate(found.types, start=1)
    ]
    names = ['"' + name.replace('"', '""') + '"' for name in found.columns]
    return found.project(", ".join(f"{column} as {name}" for column, name in zip(columns, names, strict=True)))


def _texts() -> dict[str, str]:
    folder = resources.files("labeler") / "queries"
    return {
        file.name.removesuffix(".sql"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    }
