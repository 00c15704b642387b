"""Exact search is brute force in float64, whatever the blocks; hidden parts do not count."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reid.retrieval.search
from reid.inference.embeddings import EmbeddingStore, Kind, writing
from reid.inference.similarity import FULLY_VISIBLE, Comparison, Side, similarities
from reid.retrieval.search import exact_search
from shared.errors import UsageError
from shared.schemas import PARTS

E = 6
Make = Callable[..., EmbeddingStore]


def facts(number: int, **more: Any) -> dict[str, Any]:
    names = {"key": f"/g/{number}.jpg", "image_id": f"{number:016x}", "path": f"{number}.jpg", "folder": "/g"}
    return {**names, "size_bytes": 1, "modified_ns": 1, **more}


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def make_store(tmp_path: Path) -> Make:
    def make(
        features: NDArray[np.float32], visibility: NDArray[np.float32], *, dtype: Any = "float32", shard: int = 40
    ) -> EmbeddingStore:
        parts = PARTS if visibility.shape[1] else ()
        with writing(tmp_path / "store", kind := Kind("a" * 16, parts, features.shape[1], dtype)) as writer:
            for start in range(0, len(features), shard):
                rows = range(start, min(start + shard, len(features)))
                writer.add([facts(n) for n in rows], features[rows], visibility[rows])
        assert EmbeddingStore(tmp_path / "store").kind == kind
        return EmbeddingStore(tmp_path / "store")

    return make


def slow_similarity(q: Any, qv: Any, g: Any, gv: Any, only: str | None = None) -> float:
    """The definition, part by part."""
    top = query_square = gallery_square = 0.0
    for place, name in enumerate(("whole", *PARTS)):
        if only not in (None, name):
            continue
        weight = 1.0 if place == 0 else min(1, qv[place - 1] / FULLY_VISIBLE) * min(1, gv[place - 1] / FULLY_VISIBLE)
        a, b = (x[place * E : (place + 1) * E].astype(float) for x in (q, g))
        top += weight * float(a @ b)
        query_square += weight * float(a @ a)
        gallery_square += weight * float(b @ b)
    return top / (query_square * gallery_square) ** 0.5 if query_square * gallery_square else float("nan")


@pytest.fixture
def people() -> tuple[NDArray[np.float32], ...]:
    rng = np.random.default_rng(0)
    query, gallery = unit(rng.normal(size=(7, 4 * E))), unit(rng.normal(size=(150, 4 * E)))
    gallery[100] = gallery[20] = gallery[3]  # ties
    seen = [rng.choice([0, 0.01, 0.3], size=(len(side), 3), p=[0.3, 0.1, 0.6]) for side in (query, gallery)]
    seen[1][[3, 20, 100]] = 0.5
    return query, seen[0].astype(np.float32), gallery, seen[1].astype(np.float32)


@pytest.mark.parametrize("only", [None, "whole", "legs"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_search_is_brute_force(
    make_store: Make, people: Any, only: str | None, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, query_seen, gallery, seen = people
    if only == "legs":
        query_seen[:, 2] = 0.4
    store = make_store(gallery, seen, dtype=dtype)
    stored = store.features()[0]
    slow = np.array(
        [
            [slow_similarity(q, v, g, w, only) for g, w in zip(stored, seen, strict=True)]
            for q, v in zip(query, query_seen, strict=True)
        ]
    )
    order = np.argsort(-np.where(np.isnan(slow), -np.inf, slow), axis=1, kind="stable")
    for block in (7, 1000):
        monkeypatch.setattr(reid.retrieval.search, "BLOCK_ROWS", block)
        found = exact_search(store, query, query_seen, 12, comparison=Comparison(PARTS, only))
        np.testing.assert_array_equal(found.rows, order[:, :12])
        np.testing.assert_allclose(found.similarities, np.take_along_axis(slow, order[:, :12], 1), atol=1e-6)


def test_ties_go_to_the_earlier_row(make_store: Make, people: Any) -> None:
    _, _, gallery, seen = people
    found = exact_search(make_store(gallery, seen), gallery[[20]], seen[[20]], 3)
    assert found.rows.tolist() == [[3, 20, 100]]


def test_with_all_parts_visible_it_is_the_cosine(people: Any) -> None:
    query, query_seen, gallery, seen = people
    sides = [
        Side.of(rows, np.ones_like(shown), Comparison(PARTS)) for rows, shown in ((query, query_seen), (gallery, seen))
    ]
    np.testing.assert_allclose(similarities(*sides), query @ gallery.T, atol=1e-6)
    assert all(side.plain for side in sides)


def test_a_hidden_part_changes_nothing(make_store: Make, people: Any) -> None:
    query, query_seen, gallery, seen = people
    seen[:, 1] = 0
    before = exact_search(make_store(gallery, seen), query, query_seen, 20)
    other = gallery.copy()
    other[:, 2 * E : 3 * E] = 7.0
    after = exact_search(make_store(other, seen, dtype="float32"), query, query_seen, 20)
    np.testing.assert_array_equal(before.rows, after.rows)
    np.testing.assert_allclose(before.similarities, after.similarities, atol=1e-12)


def test_images_that_do_not_show_the_part_are_left_out(make_store: Make, people: Any) -> None:
    query, query_seen, gallery, seen = people
    seen[:, 0] = 0
    seen[[4, 9], 0] = 0.2
    query_seen[:, 0] = 0.2
    store = make_store(gallery, seen)
    found = exact_search(store, query, query_seen, 5, comparison=Comparison(PARTS, "head"))
    assert (np.sort(found.rows, 1)[:, 3:] == [4, 9]).all() and (found.rows[:, 2:] == -1).all()
    assert np.isnan(found.similarities[:, 2:]).all()
    query_seen[3, 0] = 0
    with pytest.raises(UsageError, match="query 4 does not show the part 'head'"):
        exact_search(store, query, query_seen, 5, comparison=Comparison(PARTS, "head"))


def test_only_allowed_rows_are_found(make_store: Make, people: Any) -> None:
    query, query_seen, gallery, seen = people
    allowed = np.arange(150) % 3 == 0
    store = make_store(gallery, seen)
    found = exact_search(store, query, query_seen, 150, allowed=allowed)
    everyone = exact_search(store, query, query_seen, 150)
    for mine, all_of_them in zip(found.rows, everyone.rows, strict=True):
        assert mine[:50].tolist() == [row for row in all_of_them if allowed[row]] and (mine[50:] == -1).all()
    assert (exact_search(store, query, query_seen, 2, allowed=np.zeros(150, bool)).rows == -1).all()


def test_a_model_without_parts(make_store: Make) -> None:
    rng = np.random.default_rng(1)
    gallery, none = unit(rng.normal(size=(30, 8))), np.zeros((30, 0), np.float32)
    found = exact_search(make_store(gallery, none), gallery[:4], none[:4], 5)
    assert found.rows.tolist() == np.argsort(-(gallery[:4] @ gallery.T), axis=1)[:, :5].tolist()


def test_what_does_not_fit_is_refused(make_store: Make, people: Any) -> None:
    query, query_seen, gallery, seen = people
    store = make_store(gallery, seen)
    with pytest.raises(UsageError, match="length 23"):
        exact_search(store, query[:, :-1], query_seen, 5)
    with pytest.raises(UsageError, match="no part 'hat'"):
        Comparison(PARTS, "hat")
