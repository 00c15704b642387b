"""Approximate search with LanceDB, for galleries beyond a million images: IVF-PQ, its recall measured when it is built.

    <gallery>/approximate.json    where the LanceDB table is, what it holds, how it is searched, its recall

The table holds key, feature and visibility of every image; candidates of its index are compared again by the features
themselves, hidden parts left out. It is a copy: the shards of the gallery stay what counts, and a table that is behind
them is refused until `synchronise` has run.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reid.inference.embeddings import EmbeddingStore
from reid.inference.similarity import Comparison, exact_similarities
from reid.retrieval.search import Found, exact_search
from shared.errors import DataError, UsageError
from shared.files import write_text
from shared.progress import Progress

RECORD, TABLE = "approximate.json", "gallery"
MIN_ROWS = 5_000  # fewer do not train the codebooks, and are searched exactly in milliseconds
SAMPLE = 200  # images that recall is measured with
PROBES = (16, 32, 64, 128, 256, 512)  # partitions looked into; the first that reaches WANTED_RECALL is taken
WANTED_RECALL = 0.98
CANDIDATES = 100  # of the index, compared again by their features; at least ten times what is asked for


@dataclass(frozen=True)
class Approximate:
    """What approximate.json records. recall: share of the 10 nearest images of SAMPLE gallery images, itself left out,
    that the index finds; against exact search. state: of the shards that the table holds."""

    uri: str
    state: str
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
            <gallery>/lancedb.
        sub_vectors: of the product quantiser; default: one per 8 numbers.
    Raises:
        UsageError: the gallery is too small.
        DataError: LanceDB is not installed, or cannot use the place.
    """
    if len(store) < MIN_ROWS:
        raise UsageError(
            f"{len(store):,} images are too few for an approximate index (from {MIN_ROWS:,})",
            fix="search without --approximate: it takes milliseconds",
        )
    path = store.folder / RECORD
    if uri is None:
        try:
            uri = json.loads(path.read_text(encoding="utf-8"))["uri"]
        except (OSError, ValueError, KeyError, TypeError):
            uri = str((store.folder / "lancedb").absolute())
    lance = _lance()
    try:
        database = lance.connect(uri)
        if TABLE in database.table_names():
            table = database.open_table(TABLE)
            if _kind_of(table) != store.kind.model_hash:
                database.drop_table(TABLE)
                table = _created(database, store, sub_vectors)
            else:
                _update(table, store)
        else:
            table = _created(database, store, sub_vectors)
    except (OSError, RuntimeError, ValueError) as err:
        raise _cannot(uri, err) from err
    found = Approximate(uri, _state(store), len(store), *_tuned(store, table))
    write_text(path, json.dumps(asdict(found), indent=2) + "\n")
    return found


class ApproximateSearch:
    """A gallery's index, opened. probes: partitions that are looked into."""

    def __init__(self, store: EmbeddingStore, table: Any, probes: int) -> None:
        self._store, self._table, self.probes = store, table, probes
        self._row = {key: row for row, key in enumerate(store.facts.column("key").to_pylist())}

    @classmethod
    def open(cls, store: EmbeddingStore, record: Approximate) -> "ApproximateSearch":
        """Raises DataError when LanceDB is not installed or the table is gone."""
        try:
            return cls(store, _lance().connect(record.uri).open_table(TABLE), record.probes)
        except (OSError, RuntimeError, ValueError) as err:
            raise _cannot(record.uri, err) from err

    def search(self, features: NDArray[np.float32], visibility: NDArray[np.float32], top: int) -> Found:
        """As reid.retrieval.search.exact_search by person and all parts, but only nearly always the nearest images."""
        comparison = Comparison(self._store.kind.parts)
        rows = np.full((len(features), top), -1, np.int64)
        values = np.full((len(features), top), np.nan)
        for place, (feature, shown) in enumerate(zip(features, visibility, strict=True)):
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


def _created(database: Any, store: EmbeddingStore, sub_vectors: int | None) -> Any:
    from lancedb.index import IvfPq

    table = database.create_table(TABLE, data=_rows(store), schema=_schema(store), mode="overwrite")
    config = IvfPq(
        distance_type="cosine",
        num_partitions=max(16, round(len(store) ** 0.5)),
        num_sub_vectors=sub_vectors or max(1, store.kind.feature_dim // 8),
        max_iterations=20,
    )
    table.create_index("feature", config=config)
    return table


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


def _tuned(store: EmbeddingStore, table: Any) -> tuple[int, float]:
    """How many partitions are looked into, and the recall that this gives."""
    sample = np.sort(np.random.default_rng(0).choice(len(store), min(SAMPLE, len(store)), replace=False))
    features, visibility = store.features(sample)
    keys = store.facts.column("key").to_pylist()
    with Progress("measure recall", len(store)) as progress:
        exact = exact_search(store, features, visibility, 11, progress=progress)
    wanted = [{keys[row] for row in rows if row not in (own, -1)} for own, rows in zip(sample, exact.rows, strict=True)]
    search, recall = ApproximateSearch(store, table, PROBES[0]), 0.0
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


def _lance() -> Any:
    try:
        import lancedb
    except ImportError as err:
        raise DataError("approximate search needs LanceDB", fix="pip install 'dgreid[search]'") from err
    return lancedb


def _cannot(uri: str, err: Exception) -> DataError:
    reason = (str(err).splitlines() or [type(err).__name__])[0][:200]
    return DataError(f"the approximate index cannot be used: {reason}", path=uri, fix="build it again: dgreid index")
