"""The approximate index finds what exact search finds, follows the gallery, and is refused when it is behind."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reid.inference.embeddings import EmbeddingStore, Kind, writing
from reid.retrieval import approximate
from reid.retrieval.approximate import ApproximateSearch, read_record, synchronise
from reid.retrieval.search import exact_search
from shared.errors import DataError, UsageError
from tests.reid.retrieval.test_search import facts, unit

pytest.importorskip("lancedb")
COUNT, F = 1200, 32


@pytest.fixture
def gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingStore:
    monkeypatch.setattr(approximate, "MIN_ROWS", 500)
    rng = np.random.default_rng(0)
    features = unit(np.repeat(rng.normal(size=(COUNT // 10, F)), 10, axis=0) + 0.4 * rng.normal(size=(COUNT, F)))
    with writing(tmp_path / "gallery", Kind("b" * 16, (), F)) as writer:
        writer.add([facts(n) for n in range(COUNT)], features, np.zeros((COUNT, 0), np.float32))
    return EmbeddingStore(tmp_path / "gallery")


def found(store: EmbeddingStore, rows: NDArray[np.int64]) -> tuple[set[str], set[str]]:
    features, visibility = store.features(rows)
    record = read_record(store)
    assert record is not None
    keys = np.array(store.facts["key"].to_pylist())
    near = ApproximateSearch.open(store, record).search(features, visibility, 5).rows
    exact = exact_search(store, features, visibility, 5).rows
    return set(keys[near.ravel()]), set(keys[exact.ravel()])


def test_it_finds_what_exact_search_finds_and_follows_the_gallery(gallery: EmbeddingStore) -> None:
    assert read_record(gallery) is None
    record = synchronise(gallery)
    assert record.recall >= 0.98 and record.rows == COUNT
    near, exact = found(gallery, np.arange(0, COUNT, 100))
    assert len(near & exact) >= 0.95 * len(exact)
    rng = np.random.default_rng(1)
    with writing(gallery.folder, gallery.kind) as writer:
        writer.remove([f"/g/{n}.jpg" for n in range(0, 100)])
        fresh = unit(rng.normal(size=(60, F)))
        writer.add([facts(n) for n in range(COUNT, COUNT + 60)], fresh, np.zeros((60, 0), np.float32))
    changed = EmbeddingStore(gallery.folder)
    with pytest.raises(DataError, match="behind the gallery"):
        read_record(changed)
    assert synchronise(changed).rows == len(changed) == COUNT - 40
    near, exact = found(changed, np.array([0, 50, len(changed) - 1]))
    assert len(near & exact) >= 14 and not near & {f"/g/{n}.jpg" for n in range(100)}
    assert f"/g/{COUNT + 59}.jpg" in near


def test_what_cannot_be_used_is_told(gallery: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    record = synchronise(gallery)
    path = gallery.folder / "approximate.json"
    path.write_text("{")
    with pytest.raises(DataError, match="not a record"):
        read_record(gallery)
    path.write_text(json.dumps({**record.__dict__, "uri": str(gallery.folder / "nowhere")}))
    with pytest.raises(DataError, match="cannot be used"):
        ApproximateSearch.open(gallery, read_record(gallery))  # type: ignore[arg-type]
    monkeypatch.setattr(approximate, "MIN_ROWS", 10**6)
    with pytest.raises(UsageError, match="too few"):
        synchronise(gallery)
