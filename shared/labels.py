"""Manifest and label rows as Parquet: written atomically, checked on reading, opened as DuckDB views."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from shared.errors import DataError
from shared.files import atomic_path
from shared.schemas import LABEL_SCHEMA, MANIFEST_SCHEMA, LabelRow, ManifestRow

ROWS_AT_ONCE = 1024  # of a manifest that is streamed


def to_table(rows: Sequence[BaseModel], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([row.model_dump() for row in rows], schema=schema)


def write_table(table: pa.Table, path: Path) -> None:
    """Write one Parquet file atomically. Raises DgreidError when the place cannot be written."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_manifest(rows: Sequence[ManifestRow], path: Path) -> None:
    write_table(to_table(rows, MANIFEST_SCHEMA), path)


def read_manifest(path: Path) -> list[ManifestRow]:
    """All rows of one manifest. Raises DataError, with the command that makes it, when it is missing, damaged or of
    another version."""
    return list(iter_manifest(path))


def iter_manifest(path: Path) -> Iterator[ManifestRow]:
    """The rows of one manifest, read as they are asked for. Raises what `read_manifest` raises, at the first row."""
    if not path.is_file():
        raise DataError(
            "there is no manifest for this data set yet", path=path, fix=f"make manifest DATASET={path.stem}"
        )
    remedy = _manifest_remedy(path)
    try:
        with pq.ParquetFile(path) as file:
            _check_schema(file.schema_arrow, MANIFEST_SCHEMA, path, remedy)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from (ManifestRow(**row) for row in batch.to_pylist())
    except ValidationError as err:
        raise DataError(f"no row of a manifest ({err.errors()[0]['msg']})", path=path, fix=remedy) from err
    except (OSError, pa.ArrowInvalid) as err:
        raise _damaged(err, path, remedy) from err


@dataclass(frozen=True)
class ManifestFile:
    """A manifest that can be walked through any number of times without being held in memory."""

    path: Path

    def __iter__(self) -> Iterator[ManifestRow]:
        return iter_manifest(self.path)


def label_folder(labels_root: Path, label_run: str, dataset: str, split: str) -> Path:
    return labels_root / f"label_run={label_run}" / f"dataset={dataset}" / f"split={split}"


def label_shards(labels_root: Path, *, label_run: str = "*", dataset: str = "*") -> list[Path]:
    """Finished shards of one or all label runs and data sets, sorted by path."""
    return sorted(labels_root.glob(f"label_run={label_run}/dataset={dataset}/split=*/part-*.parquet"))


def write_label_shard(rows: Sequence[LabelRow], folder: Path) -> Path:
    """Write rows of one (label run, data set, split) as the next free part-NNNNN.parquet of `folder`."""
    return write_label_table(to_table(rows, LABEL_SCHEMA), folder)


def write_label_table(table: pa.Table, folder: Path) -> Path:
    """`write_label_shard` for rows that are a table of LABEL_SCHEMA already."""
    taken = [int(path.stem.removeprefix("part-")) for path in folder.glob("part-*.parquet")]
    path = folder / f"part-{max(taken, default=-1) + 1:05d}.parquet"
    write_table(table, path)
    return path


def read_labels(paths: Iterable[Path]) -> list[LabelRow]:
    """Label rows of the given shards. Raises DataError for a damaged or foreign shard."""
    return [LabelRow(**row) for path in paths for row in read_label_table(path).to_pylist()]


def read_label_table(path: Path) -> pa.Table:
    return _read_checked(path, LABEL_SCHEMA, "delete this shard and run the same make label command again")


def connect(*, manifests: Sequence[Path] = (), labels: Sequence[Path] = ()) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the views `manifest` and `labels` over the given Parquet files.

    Without files a view is empty but has its columns. In `labels` a later row of the same
    (label run, data set, image, part) hides an earlier one, so retried images count once.

    Raises DataError for a manifest that is damaged or of another version.
    """
    for path in manifests:
        try:
            found = pq.read_schema(path)
        except (OSError, pa.ArrowInvalid) as err:
            raise _damaged(err, path, _manifest_remedy(path)) from err
        _check_schema(found, MANIFEST_SCHEMA, path, _manifest_remedy(path))
    connection = duckdb.connect()
    _view(connection, "manifest", manifests, MANIFEST_SCHEMA)
    _view(connection, "label_rows", labels, LABEL_SCHEMA)
    connection.execute(
        "create view labels as select * from label_rows qualify row_number() over "
        "(partition by label_run, dataset, image_id, part order by created_at desc) = 1"
    )
    return connection


def _view(connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path], schema: pa.Schema) -> None:
    if files:
        connection.read_parquet([str(path) for path in files], hive_partitioning=False).create_view(name)
    else:
        connection.register(name, schema.empty_table())


def _manifest_remedy(path: Path) -> str:
    return f"make manifest DATASET={path.stem}"


def _read_checked(path: Path, schema: pa.Schema, remedy: str) -> pa.Table:
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowInvalid) as err:
        raise _damaged(err, path, remedy) from err
    _check_schema(table.schema, schema, path, remedy)
    return table


def _check_schema(found: pa.Schema, schema: pa.Schema, path: Path, remedy: str) -> None:
    version, ours = (
        (one.metadata or {}).get(b"dgreid.version", b"none").decode(errors="replace") for one in (found, schema)
    )
    if version != ours:
        raise DataError(f"schema version {version} is not ours, which is {ours}", path=path, fix=remedy)
    if not found.equals(schema):
        raise DataError("the columns are not those of this version", path=path, fix=remedy)


def _damaged(err: Exception, path: Path, remedy: str) -> DataError:
    return DataError(f"not a readable Parquet file ({str(err).splitlines()[0][:120]})", path=path, fix=remedy)
