"""Parquet files with a fixed schema: written whole or not at all, checked on reading."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from shared.errors import DataError
from shared.files import atomic_path
from shared.object_storage import remote

ROWS_AT_ONCE = 1024  # of a file that is streamed
_VERSION = b"dgreid.version"


def to_table(rows: Sequence[BaseModel], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([row.model_dump() for row in rows], schema=schema)


def write_table(table: pa.Table, path: Path, *, staging: Path | None = None) -> None:
    """Write one Parquet file atomically. Raises DgreidError when the place cannot be written.

    Args:
        staging: folder for the unfinished file, on the same file system; default: the folder of `path`.
    """
    with atomic_path(path, staging=staging) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[Sequence[BaseModel]], None]]:
    """Yield what writes some rows more; with an exception nothing of the file appears. Raises as `write_table`."""
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        yield lambda rows: writer.write_table(to_table(rows, schema))


def read_table(path: Path, schema: pa.Schema, *, fix: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a file, all columns or some of them as dictionaries. Raises DataError when the file is damaged (as
    its pages' checksums tell), has other columns than `schema` or another version."""
    try:
        source = _source(path)
        _check_schema(pq.read_schema(source), schema, path, fix)  # first: it may lack the columns
        with pq.ParquetFile(source, read_dictionary=list(columns or ()), page_checksum_verification=True) as file:
            return file.read(columns=list(columns) if columns else None)
    except (OSError, pa.ArrowException) as err:
        raise _damaged(err, path, fix) from err


def read_columns(path: Path, schema: pa.Schema, columns: Sequence[str], *, fix: str) -> pa.Table:
    """Some columns of a file as they are. Raises as `read_table`."""
    try:
        with pq.ParquetFile(_source(path)) as file:
            _check_schema(file.schema_arrow, schema, path, fix)
            return file.read(columns=list(columns))
    except (OSError, pa.ArrowException) as err:
        raise _damaged(err, path, fix) from err


def iter_rows(
    path: Path, schema: pa.Schema, *, fix: str, chosen: npt.NDArray[np.bool_] | None = None
) -> Iterator[dict[str, object]]:
    """The rows of a file as mappings, read as they are asked for. Raises as `read_table`, at the first row.

    Args:
        chosen: which rows [N]; default: all.
    """
    position = 0
    try:
        with pq.ParquetFile(_source(path), page_checksum_verification=True) as file:
            _check_schema(file.schema_arrow, schema, path, fix)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                if chosen is None:
                    yield from batch.to_pylist()
                elif (wanted := chosen[position : position + len(batch)]).any():
                    yield from batch.filter(pa.array(wanted)).to_pylist()
                position += len(batch)
    except (OSError, pa.ArrowException) as err:
        raise _damaged(err, path, fix) from err


def check_file(path: Path, schema: pa.Schema, *, fix: str) -> None:
    """Raises what `read_table` raises, as far as the file's footer shows it."""
    try:
        found = pq.read_schema(_source(path))
    except (OSError, pa.ArrowException) as err:
        raise _damaged(err, path, fix) from err
    _check_schema(found, schema, path, fix)


def row_count(path: Path) -> int:
    """As the file's footer says it."""
    return int(pq.read_metadata(_source(path)).num_rows)


def _source(path: Path) -> Any:
    """What pyarrow reads: the file, or the content of an object, whose failures are then told as what they are."""
    return pa.BufferReader(there.read_bytes()) if (there := remote(path)) else path


def _check_schema(found: pa.Schema, schema: pa.Schema, path: Path, fix: str) -> None:
    own = int(schema.metadata[_VERSION])
    given = (found.metadata or {}).get(_VERSION, b"").decode("ascii", "replace")
    if given.isdecimal() and int(given) > own:
        raise DataError(
            f"written by a newer version of dgreid (schema {given}; this version reads schema {own})",
            path=path,
            fix="update dgreid",
        )
    if given != str(own):
        raise DataError(
            f"written with schema {given or 'unknown'}; this version reads schema {own}", path=path, fix=fix
        )
    if not found.equals(schema):
        names = [*schema.names, *(name for name in found.names if name not in schema.names)]
        odd = [name for name in names if _column(found, name) != _column(schema, name)]
        told = f"{odd[0]} is {_column(found, odd[0])}, not {_column(schema, odd[0])}" if odd else "in another order"
        more = f", and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise DataError(f"the columns are not those of this version ({told}{more})", path=path, fix=fix)


def _column(schema: pa.Schema, name: str) -> str:
    """A column's type in words."""
    fields = [schema.field(place) for place in schema.get_all_field_indices(name)]
    if len(fields) != 1:
        return "there more than once" if fields else "nowhere"
    kind = str(fields[0].type).replace("list<element:", "list<item:")  # Parquet's name for it, and Arrow's
    return f"{kind}{' or NULL' if fields[0].nullable else ''}"


def _damaged(err: Exception, path: Path, fix: str) -> DataError:
    return DataError(f"not a readable Parquet file ({str(err).splitlines()[0][:120]})", path=path, fix=fix)
