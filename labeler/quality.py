"""Looking at labels with SQL: canned queries, and any other SELECT, over the views of `shared.labels.connect`."""

from importlib import resources

import duckdb

from shared.errors import ConfigError, UsageError


def list_queries() -> dict[str, str]:
    """Names of the canned queries and what each tells (the first line of its file)."""
    return {name: text.splitlines()[0].removeprefix("--").strip() for name, text in sorted(_texts().items())}


def run_query(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[list[str], list[tuple[object, ...]]]:
    """Column names and rows of a canned query, by name, or of one SELECT over `manifest`, `labels`, `label_rows`.

    Raises ConfigError for an unknown name, UsageError for SQL that fails or is more than one SELECT: labels are read
    here, never written.
    """
    text = query.strip()
    if text.isidentifier():
        if text not in (texts := _texts()):
            raise ConfigError(f"no canned query is called {text!r}", fix=f"choose one of: {', '.join(sorted(texts))}")
        text = texts[text]
    try:
        statements = connection.extract_statements(text)
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise UsageError("the query is not a single SELECT", fix="ask one question; results can be piped to a file")
        result = connection.execute(statements[0])
        return [column[0] for column in result.description], result.fetchall()
    except duckdb.Error as err:
        raise UsageError(
            f"DuckDB says: {str(err).strip()[:500]}",
            fix="columns: `describe labels`, `describe manifest`; canned queries: " + ", ".join(sorted(_texts())),
        ) from err


def _texts() -> dict[str, str]:
    folder = resources.files("labeler") / "queries"
    return {
        file.name.removesuffix(".sql"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    }
