"""Approximate search with LanceDB, for galleries beyond a million images: IVF-PQ, its recall measured when it is built.

    <gallery>/approximate.json    where the LanceDB table is, what it holds, how it is searched, its recall

The table holds key, feature and visibility of every image; candidates of its index are compared again by the features
themselves, hidden parts left out. It is a copy: the shards of the gallery stay what counts, and a table that is behind
them is refused until `synchronise` has run, and so is one that another gallery has changed.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reid.inference.embeddings import EmbeddingStore
from reid.inference.similarity import Comparison, exact_similarities
from reid.retrieval.search import Found, exact_search
from shared.errors import DataError, UsageError
from shared.files import write_text
from shared.object_storage import remote, root_path, without_secrets
from shared.progress import Progress

RECORD, TABLE, FOLDER = "approximate.json", "gallery", "lancedb"
MIN_ROWS = 5_000  # fewer do not train the codebooks, and are searched exactly in milliseconds
SAMPLE = 200  # images that recall is measured with
PROBES = (16, 32, 64, 128, 256, 512)  # partitions looked into; the first that reaches WANTED_RECALL is taken
WANTED_RECALL = 0.98
CANDIDATES = 100  # of the index, compared again by their features; at least ten times what is asked for


@dataclass(frozen=True)
class Approximate:
    """What approximate.json records.

    uri: of the LanceDB database; FOLDER: in the gallery. state: of the shards that the table holds. version: of the
    table. recall: share of the 10 nearest images of SAMPLE gallery images, itself left out, that the index finds;
    against exact search.
    """

    uri: str
    state: str
    version: int
    rows: int
    probes: int
    recall: float


def read_record(store: EmbeddingStore) -> Approximate | None:
    """The gallery's index, or None. Raises DataError for a damaged record or an index behind its shards."""
    path = store.folder / RECORD
    if not path.is_file():
        return None
    fix = f"dgreid index {store.folder} --approximate"
    try:
        record = Approximate(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as err:
        raise DataError("not a record of an approximate index", path=path, fix=fix) from err
    if record.state != _state(store):
        raise DataError("the approximate index is behind the gallery", path=path, fix=fix)
    return record


def synchronise(store: EmbeddingStore, uri: str | None = None, *, sub_vectors: int | None = None) -> Approximate:
    """Build the index of a gallery, or bring it up to date: rows that left are deleted, new ones added.

    Args:
        uri: folder or object storage (s3://..., gs://...) of the LanceDB database; default: where it is, or
            <gallery>/lancedb, wherever the gallery is moved.
        sub_vectors: of the product quantiser; default: one per 8 numbers.
    Raises:
        UsageError: the gallery is too small.
        DataError: LanceDB is not installed, or cannot use the place.
        StorageError: an object store that cannot be used.
    """
    if len(store) < MIN_ROWS:
        raise UsageError(
            f"{len(store):,} images are too few for an approximate index (from {MIN_ROWS:,})",
            fix="search without --approximate: it takes milliseconds",
        )
    path = store.folder / RECORD
    if uri is None:
        try:
            uri = str(json.loads(path.read_text(encoding="utf-8"))["uri"])
        except (OSError, ValueError, KeyError, TypeError):
            uri = FOLDER
    elif "://" not in uri:
        uri = str(Path(uri).absolute())
    place = place_of(store, uri)
    store.fetch()  # before, so that its errors are not LanceDB's
    with _told(place):
        database = _database(place)
        if TABLE in database.list_tables().tables:
            table = database.open_table(TABLE)
            if _kind_of(table) != store.kind.model_hash:
                database.drop_table(TABLE)
                table = _created(database, store)
            else:
                _update(table, store)
        else:
            table = _created(database, store)
        if not any("feature" in one.columns for one in table.list_indices()):  # a killed process may not have got there
            _index(table, store, sub_vectors)
        version = int(table.version)
    found = Approximate(uri, _state(store), version, len(store), *_tuned(store, table, place))
    write_text(path, json.dumps(asdict(found), indent=2) + "\n")
    return found


class ApproximateSearch:
    """A gallery's index, opened. probes: partitions that are looked into."""

    def __init__(self, store: EmbeddingStore, table: Any, place: Path, probes: int) -> None:
        self._store, self._table, self._place, self.probes = store, table, place, probes
        self._row = {key: row for row, key in enumerate(store.facts.column("key").to_pylist())}

    @classmethod
    def open(cls, store: EmbeddingStore, record: Approximate) -> "ApproximateSearch":
        """Raises DataError when LanceDB is not installed, or the table is gone or was changed; StorageError."""
        place = place_of(store, record.uri)
        with _told(place):
            table = _database(place).open_table(TABLE)
            version = int(table.version)
        if version != record.version:
            raise DataError(
                "another gallery has changed this approximate index",
                path=place,
                fix=f"dgreid index {store.folder} --uri <a place of its own>",
            )
        return cls(store, table, place, record.probes)

    def search(self, features: NDArray[np.float32], visibility: NDArray[np.float32], top: int) -> Found:
        """As reid.retrieval.search.exact_search by person and all parts, but only nearly always the nearest images.

        Raises DataError when the index cannot be read.
        """
        comparison = Comparison(self._store.kind.parts)
        rows = np.full((len(features), top), -1, np.int64)
        values = np.full((len(features), top), np.nan)
        for place, (feature, shown) in enumerate(zip(features, visibility, strict=True)):
            with _told(self._place):
                near = _candidates(self._table, feature, max(CANDIDATES, 10 * top), self.probes)
            if not len(near):
                continue
            others = near.column("feature").combine_chunks().flatten().to_numpy().reshape(len(near), -1)
            seen = near.column("visibility").combine_chunks().flatten().to_numpy().reshape(len(near), -1)
            exact = exact_similarities(feature, shown, others, seen, comparison)
            order = np.argsort(-exact, kind="stable")[:top]
            keys = near.column("key").take(pa.array(order)).to_pylist()
            rows[place, : len(order)] = [self._row[key] for key in keys]
            values[place, : len(order)] = exact[order]
        return Found(rows, values)


def _candidates(table: Any, feature: NDArray[np.float32], count: int, probes: int) -> pa.Table:
    asked = table.search(feature, vector_column_name="feature").distance_type("cosine").nprobes(probes).limit(count)
    found: pa.Table = asked.select(["key", "feature", "visibility", "_distance"]).to_arrow()
    return found


def _created(database: Any, store: EmbeddingStore) -> Any:
    return database.create_table(TABLE, data=_rows(store), schema=_schema(store), mode="overwrite")


def _index(table: Any, store: EmbeddingStore, sub_vectors: int | None) -> None:
    from lancedb.index import IvfPq

    config = IvfPq(
        distance_type="cosine",
        num_partitions=max(16, round(len(store) ** 0.5)),
        num_sub_vectors=sub_vectors or max(1, store.kind.feature_dim // 8),
        max_iterations=20,
    )
    table.create_index("feature", config=config)


def _update(table: Any, store: EmbeddingStore) -> None:
    there = table.search().select(["key", "state"]).limit(table.count_rows()).to_arrow()
    known = dict(zip(there.column("key").to_pylist(), there.column("state").to_pylist(), strict=True))
    now = dict(zip(store.facts.column("key").to_pylist(), _row_states(store), strict=True))
    gone = [key for key, state in known.items() if now.get(key) != state]
    for start in range(0, len(gone), 500):
        listed = ", ".join("'" + key.replace("'", "''") + "'" for key in gone[start : start + 500])
        table.delete(f"key in ({listed})")
    new = {key for key, state in now.items() if known.get(key) != state}
    if new:
        table.add(_rows(store, new))
    table.optimize()


def _rows(store: EmbeddingStore, wanted: set[str] | None = None) -> Iterator[pa.RecordBatch]:
    keys, states, schema = store.facts.column("key").to_pylist(), _row_states(store), _schema(store)
    with Progress("index", len(store)) as progress:
        for block in store.blocks():
            chosen = [n for n, row in enumerate(block.rows) if wanted is None or keys[row] in wanted]
            progress.advance(len(block.rows))
            if chosen:
                features = pa.array(np.ascontiguousarray(block.features[chosen]).ravel())
                yield pa.RecordBatch.from_arrays(
                    [
                        pa.array([keys[row] for row in block.rows[chosen]]),
                        pa.array([states[row] for row in block.rows[chosen]]),
                        pa.FixedSizeListArray.from_arrays(features, store.kind.feature_dim),
                        pa.array(block.visibility[chosen].tolist(), pa.list_(pa.float32())),
                    ],
                    schema=schema,
                )


def _schema(store: EmbeddingStore) -> pa.Schema:
    number = {"float16": pa.float16(), "float32": pa.float32()}[store.kind.dtype]
    fields = [("key", pa.string()), ("state", pa.string()), ("feature", pa.list_(number, store.kind.feature_dim))]
    return pa.schema([*fields, ("visibility", pa.list_(pa.float32()))], {"model_hash": store.kind.model_hash})


def _kind_of(table: Any) -> str:
    return str((table.schema.metadata or {}).get(b"model_hash", b"").decode())


def _tuned(store: EmbeddingStore, table: Any, place: Path) -> tuple[int, float]:
    """How many partitions are looked into, and the recall that this gives."""
    sample = np.sort(np.random.default_rng(0).choice(len(store), min(SAMPLE, len(store)), replace=False))
    features, visibility = store.features(sample)
    keys = store.facts.column("key").to_pylist()
    with Progress("measure recall", len(store)) as progress:
        exact = exact_search(store, features, visibility, 11, progress=progress)
    wanted = [{keys[row] for row in rows if row not in (own, -1)} for own, rows in zip(sample, exact.rows, strict=True)]
    search, recall = ApproximateSearch(store, table, place, PROBES[0]), 0.0
    for search.probes in PROBES:
        found = search.search(features, visibility, 11)
        hits = sum(
            len({keys[row] for row in rows if row >= 0} & ones) for rows, ones in zip(found.rows, wanted, strict=True)
        )
        recall = hits / sum(map(len, wanted))
        if recall >= WANTED_RECALL:
            break
    return search.probes, recall


def _row_states(store: EmbeddingStore) -> list[str]:
    """Of each row, what changes with its content."""
    columns = [store.facts.column(name).to_pylist() for name in ("image_id", "modified_ns")]
    return [f"{image} {modified}" for image, modified in zip(*columns, strict=True)]


def _state(store: EmbeddingStore) -> str:
    digest = hashlib.sha256(store.kind.model_hash.encode())
    for key, state in zip(store.facts.column("key").to_pylist(), _row_states(store), strict=True):
        digest.update(f"{key}\0{state}\0".encode())
    return digest.hexdigest()[:16]


def place_of(store: EmbeddingStore, uri: str) -> Path:
    """Where the database is. Raises StorageError for an object store that cannot be used."""
    return store.folder / FOLDER if uri == FOLDER else root_path(uri)


def _database(place: Path) -> Any:
    """LanceDB at a place, which it reads and writes by itself, with the settings that our own client of it has."""
    os.environ.setdefault("LANCEDB_LOG", "error")  # read when it is imported
    try:
        import lancedb
    except ImportError as err:
        raise DataError("approximate search needs LanceDB", fix="pip install 'dgreid[search]'") from err
    there = remote(place)
    return lancedb.connect(str(place), storage_options=there.client_options() if there else None)


@contextmanager
def _told(place: Path) -> Iterator[None]:
    """Raises LanceDB's errors as a DataError, or as the StorageError that our own client of the store gets."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as err:
        if there := remote(place):
            there.exists()
        raise DataError(
            f"the approximate index cannot be used: {without_secrets(err)}",
            path=place,
            fix="run the same command again, or delete it and build it again: dgreid index",
        ) from err
