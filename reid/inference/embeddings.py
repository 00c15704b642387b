"""Embeddings on disk: a folder of Parquet shards with one row per image, which is also the gallery that is searched.

    <folder>/part-000001.parquet, part-000002.parquet, ...

A folder holds features of one model, which its shards name (`model_hash`). Shards are only ever added or replaced as a
whole; of rows with the same `key` the one in the last shard counts, so that a process killed between adding the new and
removing the old row of an image leaves a folder that reads the same. The shards open as they are in DuckDB, pandas,
polars and pyarrow.

A folder may be in an object store: facts are read from there, features from copies of the shards in a temporary folder
of this machine, which are fetched when features are first asked for.
"""

import fcntl
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.duckdb_session import open_session
from shared.errors import DataError, DgreidError, UsageError
from shared.files import atomic_path, make_folder, remove_file
from shared.lease import lease
from shared.object_storage import THREADS, remote

VERSION = "1"
GROUP_ROWS = 16_384  # of a row group, what a reader holds at once
FACTS = pa.schema(  # of every image, beside its feature
    [
        pa.field("key", pa.string(), nullable=False),  # absolute path; of a video's crop "path#frame.number"
        pa.field("image_id", pa.string(), nullable=False),  # of the file's bytes; of a crop, of its pixels
        pa.field("path", pa.string(), nullable=False),  # relative to `folder`, POSIX
        pa.field("folder", pa.string(), nullable=False),
        pa.field("dataset", pa.string()),
        pa.field("split", pa.string()),
        pa.field("identity", pa.string()),  # as the data set calls it; NULL: not known, or no person
        pa.field("camera", pa.string()),
        pa.field("frame", pa.int64()),  # of a video, from 1
        pa.field("time_s", pa.float64()),
        pa.field("track", pa.int64()),
        pa.field("box", pa.list_(pa.float32())),  # x_min, y_min, x_max, y_max in pixels of the frame
        pa.field("size_bytes", pa.int64(), nullable=False),  # with modified_ns: lets a later run skip unchanged files
        pa.field("modified_ns", pa.int64(), nullable=False),
    ]
)


class Block(NamedTuple):
    """Neighbouring rows. features [n, F] as stored, visibility float32 [n, R], rows: their numbers [n] in the order of
    `EmbeddingStore.facts`."""

    features: NDArray[Any]
    visibility: NDArray[np.float32]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Kind:
    """What all shards of a folder have in common.

    model_hash: of reid.inference.trained.model_hash. parts: names of the R parts. feature_dim: F.
    """

    model_hash: str
    parts: tuple[str, ...]
    feature_dim: int
    dtype: Literal["float16", "float32"] = "float16"

    @property
    def schema(self) -> pa.Schema:
        number = {"float16": pa.float16(), "float32": pa.float32()}[self.dtype]
        feature = pa.list_(pa.field("element", number, nullable=False), self.feature_dim)
        fields = [
            *FACTS,
            pa.field("feature", feature, nullable=False),
            pa.field("visibility", pa.list_(pa.float32()), nullable=False),  # of the parts, 0..1
            pa.field("model_hash", pa.string(), nullable=False),
        ]
        told = {
            "schema": "embeddings",
            "version": VERSION,
            "model_hash": self.model_hash,
            "parts": ",".join(self.parts),
        }
        return pa.schema(fields, metadata={f"dgreid.{name}": value for name, value in told.items()})


class EmbeddingStore:
    """A folder of embeddings, opened for reading; `writing` allows changes.

    Raises DataError when the folder has no shards, or one that is damaged, of another version, or of another model;
    StorageError for an object store that cannot be used. A folder that is changed meanwhile is noticed by `blocks`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = shard_files(folder)
        self._copies = tempfile.TemporaryDirectory(prefix="dgreid-") if remote(folder) else None
        if not self.shards:
            raise DataError(
                "there are no embeddings here", path=folder, fix="dgreid embed --run RUN --images FOLDER --out <this>"
            )
        with ThreadPool(THREADS if remote(folder) else 1) as pool:
            self._states = pool.map(_state, self.shards, chunksize=1)
            kinds, tables = zip(*pool.map(_kind_and_facts, self.shards, chunksize=1), strict=True)
        self.kind = kinds[0]
        for path, kind in zip(self.shards, kinds, strict=True):
            if kind != self.kind:
                raise DataError(
                    "the shards of this folder are not of one model", path=path, fix="keep those of one model only"
                )
        self.facts, self._kept = _newest(tables)

    def __len__(self) -> int:
        return int(self.facts.num_rows)

    def require(self, model_hash: str) -> None:
        """Raises DataError when the features are another model's."""
        if model_hash != self.kind.model_hash:
            raise DataError(
                f"these features were made by another model ({self.kind.model_hash}, not {model_hash})",
                path=self.folder,
                fix="name the run that made them, or embed the images again into another folder",
            )

    def blocks(self, rows: int = GROUP_ROWS) -> Iterator[Block]:
        """All images in the order of `facts`, at most `rows` at a time.

        Raises DataError for a damaged shard, or one that was changed since the folder was opened.
        """
        start = 0
        for path, kept in zip(self._files(), self._kept, strict=True):
            place = 0
            for batch in _batches(path, ["feature", "visibility"], rows):
                features = batch.column(0).flatten().to_numpy().reshape(len(batch), -1)
                visibility = batch.column(1).flatten().to_numpy().reshape(len(batch), len(self.kind.parts))
                here = kept[place : place + len(batch)]
                place += len(batch)
                if not here.all():
                    features, visibility = features[here], visibility[here]
                yield Block(features, visibility, np.arange(start, start + len(features)))
                start += len(features)

    def features(self, wanted: NDArray[np.int64] | None = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features float32 [n, F] and visibility [n, R] of the wanted rows in their order; None: of all."""
        count = len(self) if wanted is None else len(wanted)
        features = np.empty((count, self.kind.feature_dim), np.float32)
        visibility = np.empty((count, len(self.kind.parts)), np.float32)
        order = None if wanted is None else np.argsort(wanted, kind="stable")
        for block in self.blocks():
            if wanted is None or order is None:
                features[block.rows], visibility[block.rows] = block.features, block.visibility
            elif len(block.rows):
                first, last = np.searchsorted(wanted[order], [block.rows[0], block.rows[-1] + 1])
                places = order[first:last]
                inside = wanted[places] - block.rows[0]
                features[places], visibility[places] = block.features[inside], block.visibility[inside]
        return features, visibility

    def where(self, condition: str) -> NDArray[np.bool_]:
        """bool [N]: which rows satisfy an SQL condition over the columns of FACTS. Raises UsageError for a bad one."""
        connection = open_session()
        connection.execute("set enable_external_access=false")
        connection.register("facts", self.facts.append_column("row_", pa.array(np.arange(len(self)))))
        chosen = np.zeros(len(self), bool)
        try:
            found = connection.sql(f"select row_ from facts where ({condition}\n)").to_arrow_table()
        except duckdb.Error as err:
            raise UsageError(
                f"cannot use the condition: {str(err).splitlines()[0][:200]}",
                fix=f"write SQL over the columns {', '.join(FACTS.names)}",
            ) from err
        chosen[found.column(0).to_numpy()] = True
        return chosen

    def fetch(self) -> None:
        """Have all features on this machine, as the first use of them would."""
        for _ in self._files():
            pass

    def _files(self) -> Iterator[Path]:
        """The shards in their order as files of this machine; those of an object store are fetched some ahead."""
        if self._copies is None:
            yield from map(self._file, range(len(self.shards)))
        else:
            with ThreadPool(THREADS) as pool:
                yield from pool.imap(self._file, range(len(self.shards)))

    def _file(self, number: int) -> Path:
        path = self.shards[number]
        if self._copies is None or not (there := remote(path)):
            self._require_unchanged(number)
            return path
        copy = Path(self._copies.name) / path.name
        if not copy.exists():
            part = copy.with_suffix(".tmp")
            self._require_unchanged(number)
            there.get(part)
            self._require_unchanged(number)
            part.replace(copy)
        return copy

    def _require_unchanged(self, number: int) -> None:
        if _state(self.shards[number]) != self._states[number]:
            raise DataError(
                "these embeddings were changed meanwhile",
                path=self.shards[number],
                fix="run the same command again, when nobody changes them",
            )


class StoreWriter:
    """Adds to and removes from a folder of embeddings; use it through `writing`."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder, self.kind = folder, kind

    def add(self, facts: Sequence[dict[str, Any]], features: NDArray[Any], visibility: NDArray[np.float32]) -> None:
        """One more shard. facts: FACTS of each image; features [n, F]; visibility [n, R].

        Raises DgreidError for features that are not finite, and when it cannot be written.
        """
        if not facts:
            return
        if not np.isfinite(features).all():
            raise DgreidError(
                "the model gives features that are not finite", path=self.folder, fix="use an earlier checkpoint"
            )
        columns = pa.Table.from_pylist(list(facts), schema=FACTS).columns
        self._write(
            [
                *columns,
                pa.array(features.astype(self.kind.dtype).ravel()),
                pa.array(visibility.astype(np.float32).tolist(), pa.list_(pa.float32())),
                pa.array([self.kind.model_hash] * len(facts)),
            ],
            self._next(),
        )

    def remove(self, keys: Collection[str], *, before: int | None = None) -> int:
        """Remove the rows of these keys; returns how many were removed. before: from the first so many shards only."""
        wanted, removed = pa.array(sorted(keys), pa.string()), 0
        for path in shard_files(self.folder)[:before]:
            hit = pa.compute.is_in(_read(path, ["key"]).column(0), wanted)
            if not (count := pa.compute.sum(hit).as_py() or 0):
                continue
            removed += count
            left = _read(path, self.kind.schema.names).filter(pa.compute.invert(hit))
            if len(left):
                feature = left.column("feature").combine_chunks().flatten()
                columns = [
                    column if name != "feature" else feature
                    for name, column in zip(left.column_names, left.columns, strict=True)
                ]
                self._write(columns, path)
            else:
                remove_file(path)
        return removed

    def _next(self) -> Path:
        shards = shard_files(self.folder)
        return self.folder / f"part-{int(shards[-1].stem[5:]) + 1 if shards else 1:06d}.parquet"

    def _write(self, columns: Sequence[Any], path: Path) -> None:
        """columns: those of the schema, the feature as its numbers in a row."""
        schema = self.kind.schema
        place = schema.get_field_index("feature")
        listed = list(columns)
        listed[place] = pa.FixedSizeListArray.from_arrays(listed[place], type=schema.field(place).type)
        table = pa.Table.from_arrays(listed, schema=schema)
        dictionary = ["folder", "dataset", "split", "identity", "camera", "model_hash"]
        with atomic_path(path) as temporary:  # features do not compress, and are read faster as they are
            pq.write_table(
                table,
                temporary,
                compression=dict.fromkeys(FACTS.names, "zstd") | {"feature.list.element": "none"},
                use_dictionary=dictionary,
                row_group_size=GROUP_ROWS,
            )


@contextmanager
def writing(folder: Path, kind: Kind) -> Iterator[StoreWriter]:
    """Change a folder of embeddings, made if it is not there; one process at a time.

    Raises DataError when it holds another model's features or is damaged, DgreidError when another process is writing.
    """
    if folder.is_file():
        raise DataError("this is a file; embeddings are a folder of Parquet files", path=folder, fix="another --out")
    make_folder(folder)
    with _locked(folder):
        for path in shard_files(folder):
            if (there := _kind(path)) != kind:
                if there.model_hash != kind.model_hash:
                    what = f"holds features of another model ({there.model_hash}, not {kind.model_hash})"
                else:
                    what = f"holds features as {there.dtype}, not {kind.dtype}"
                raise DataError(f"this folder {what}", path=folder, fix="name another folder, or the same model")
        yield StoreWriter(folder, kind)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if there := remote(folder):
        with lease(there / ".lock", "writing here", afterwards="then run the same command again"):
            yield
        return
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise DataError("another process is writing here", path=folder, fix="wait until it has ended") from err
        yield
    finally:
        os.close(descriptor)


def shard_files(folder: Path) -> list[Path]:
    """The shards in their order."""
    return sorted(path for path in folder.glob("part-*.parquet") if path.stem[5:].isdecimal())


def _newest(tables: Sequence[pa.Table]) -> tuple[pa.Table, list[NDArray[np.bool_]]]:
    """The facts of all rows that count, and of each shard which those are: bool."""
    table = pa.concat_tables(tables).replace_schema_metadata(None)
    last = {key: place for place, key in enumerate(table.column("key").to_pylist())}
    kept = np.zeros(len(table), bool)
    kept[list(last.values())] = True
    ends = np.cumsum([len(one) for one in tables])
    return table if kept.all() else table.filter(pa.array(kept)), np.split(kept, ends[:-1])


def _state(path: Path) -> tuple[int, int] | None:
    """What changes with the content of a shard; None: it is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def _kind_and_facts(path: Path) -> tuple[Kind, pa.Table]:
    with _opened(path) as file:
        return _kind_of(path, file.schema_arrow), file.read(columns=FACTS.names)


def _kind(path: Path) -> Kind:
    with _opened(path) as file:
        return _kind_of(path, file.schema_arrow)


def _kind_of(path: Path, schema: pa.Schema) -> Kind:
    """Raises DataError for what is not a shard of embeddings."""
    try:
        told = {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}
        feature = schema.field("feature").type
        kind = Kind(
            told["dgreid.model_hash"],
            tuple(part for part in told["dgreid.parts"].split(",") if part),
            int(feature.list_size),
            {pa.float16(): "float16", pa.float32(): "float32"}[feature.value_type],  # type: ignore[arg-type]
        )
        if told.get("dgreid.version") == VERSION and schema.equals(kind.schema):
            return kind
    except (KeyError, ValueError, AttributeError) as err:
        raise _damaged(path, str(err)) from err
    raise DataError("embeddings of another version", path=path, fix="embed the images again into another folder")


def _read(path: Path, columns: Sequence[str]) -> pa.Table:
    with _opened(path) as file:
        return file.read(columns=list(columns))


def _batches(path: Path, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    with _opened(path) as file:
        yield from file.iter_batches(batch_size=rows, columns=list(columns))


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Raises DataError where it, or what is done with it, shows that the file is damaged."""
    try:
        there = remote(path)
        with pq.ParquetFile(there.open() if there else path, pre_buffer=there is not None) as file:
            yield file
    except (OSError, pa.ArrowException) as err:
        raise _damaged(path, str(err)) from err


def _damaged(path: Path, reason: str) -> DataError:
    told = (reason.splitlines() or [""])[0][:120]
    return DataError(f"not a readable shard of embeddings ({told})", path=path, fix="delete it and embed again")


def merged(kinds: Sequence[Kind]) -> Kind:
    """The kind of several folders that are used together. Raises UsageError when they are of different models."""
    if len({replace(kind, dtype="float32") for kind in kinds}) != 1:
        raise UsageError("the features are of different models", fix="embed all of them with one run")
    return kinds[0]
