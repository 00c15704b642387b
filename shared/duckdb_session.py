"""Every DuckDB connection of the project: in memory, with limits, so that a query ends before the machine does."""

import itertools
import os
import tempfile
from pathlib import Path

import duckdb

MEMORY_LIMIT = "50%"  # of the machine; what needs more goes to disk
MAX_TEMPORARY_FILES = "10GB"  # and what needs more than that fails
_number = itertools.count()  # sessions that share a folder for temporary files would share the files


def open_session() -> duckdb.DuckDBPyConnection:
    """An empty database in memory; its temporary files are gone when it is closed."""
    folder = Path(tempfile.gettempdir()) / f"dgreid-sql-{os.getpid()}-{next(_number)}"
    return duckdb.connect(
        config={
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": str(folder),
            "max_temp_directory_size": MAX_TEMPORARY_FILES,
        }
    )
