"""Exact search: every query against every image of a gallery, a block of the gallery in memory at a time.

The nearest images are first sought with float32 products. Those that rounding could move across the last place asked
for are compared in float64, so the result is that of comparing all pairs in float64, ties going to the earlier row.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reid.inference.embeddings import EmbeddingStore
from reid.inference.similarity import Comparison, Side, exact_similarities, similarities
from shared.errors import UsageError
from shared.progress import Progress

BLOCK_ROWS = 16_384
MARGIN = np.float32(4e-6)  # float32 products of vectors of length 1 are off by a few units of 6e-8 each


class Found(NamedTuple):
    """The nearest images of each query, nearest first. rows int64 [Q, k]: places in the store, -1 where fewer;
    similarities float64 [Q, k], NaN there."""

    rows: NDArray[np.int64]
    similarities: NDArray[np.float64]


def exact_search(
    store: EmbeddingStore,
    features: NDArray[np.float32],
    visibility: NDArray[np.float32],
    top: int,
    *,
    comparison: Comparison | None = None,
    allowed: NDArray[np.bool_] | None = None,
    progress: Progress | None = None,
) -> Found:
    """The `top` most similar images of every query.

    Images that have no compared part in common with a query are left out of its result.

    Args:
        features, visibility: [Q, F] and [Q, R] of the queries.
        comparison: by default of the person and all parts.
        allowed: bool [N], rows of the store to search in; None: all.
        progress: told the rows that have been compared.
    Raises:
        UsageError: features of another length, or a query that does not show the part that is asked for.
        DataError: a damaged shard.
    """
    comparison = comparison or Comparison(store.kind.parts)
    _check(store, features, visibility, comparison)
    query = Side.of(features, visibility, comparison)
    pool = _Nearest(len(features), top)
    for block in store.blocks(BLOCK_ROWS):
        wanted = slice(None) if allowed is None else allowed[block.rows]
        rows = block.rows[wanted]
        if len(rows):
            gallery = Side.of(block.features[wanted], block.visibility[wanted], comparison)
            pool.take(rows, similarities(query, gallery))
        if progress:
            progress.advance(len(block.rows))
    candidates = pool.candidates()
    everyone = np.unique(np.concatenate(candidates)) if candidates else np.zeros(0, np.int64)
    close, close_visibility = store.features(everyone)
    found_rows = np.full((len(features), top), -1, np.int64)
    found = np.full((len(features), top), np.nan)
    for place, mine in enumerate(candidates):
        inside = np.searchsorted(everyone, mine)
        exact = exact_similarities(
            features[place], visibility[place], close[inside], close_visibility[inside], comparison
        )
        order = np.argsort(-exact, kind="stable")[:top]  # candidates ascend: ties to the earlier row
        found_rows[place, : len(order)], found[place, : len(order)] = mine[order], exact[order]
    return Found(found_rows, found)


class _Nearest:
    """Keeps, of every query, the images that may still be among the nearest."""

    def __init__(self, queries: int, top: int) -> None:
        self._top = top
        self._least = np.full(queries, -np.inf, np.float32)  # similarity of the last place so far
        self._rows = [np.zeros(0, np.int64) for _ in range(queries)]
        self._values = [np.zeros(0, np.float32) for _ in range(queries)]

    def take(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """values float32 [Q, n] of the images `rows` [n]; NaN is never near."""
        bounds = (self._least - MARGIN)[:, None]
        for query in np.flatnonzero((values >= bounds).any(1)):
            places = np.flatnonzero(values[query] >= bounds[query])
            known = np.concatenate([self._values[query], values[query, places]])
            members = np.concatenate([self._rows[query], rows[places]])
            if len(known) >= self._top:
                last = np.partition(known, len(known) - self._top)[len(known) - self._top]
                self._least[query] = last
                kept = known >= last - MARGIN
                known, members = known[kept], members[kept]
            self._values[query], self._rows[query] = known, members

    def candidates(self) -> list[NDArray[np.int64]]:
        return [np.sort(rows) for rows in self._rows]


def _check(
    store: EmbeddingStore, features: NDArray[np.float32], visibility: NDArray[np.float32], comparison: Comparison
) -> None:
    wanted = (store.kind.feature_dim, len(store.kind.parts))
    if features.ndim != 2 or (features.shape[1], visibility.shape[1]) != wanted:
        raise UsageError(
            f"features of length {features.shape[-1]} with {visibility.shape[-1]} parts; the gallery's have {wanted}",
            fix="embed the query with the gallery's model",
        )
    if hidden := np.flatnonzero(~(comparison.weights(visibility) > 0).any(1)).tolist():
        raise UsageError(
            f"query {hidden[0] + 1} does not show the part {comparison.only!r}",
            fix="search for another part, or for the whole person",
        )
