"""k-reciprocal re-ranking (Zhong et al. 2017): two images are near when they have the same neighbours.

Everything after the search for neighbours is sparse: an image is described by the few weights of its expanded
reciprocal neighbours (Sec. 3.3 of that paper), so no table of all images against all images is ever held.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from reid.metrics.ground_truth import as_numpy
from shared.errors import DgreidError, UsageError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Item = TypeVar("Item")

THREADS = 2  # more only wait for the memory
BLOCK_BYTES = 2 * 2**20  # of a temporary table: it is gone through several times, so it should stay in the cache
PRODUCT_BYTES = 256 * 2**20  # of one matrix product: large ones are efficient
GROUPS = 6  # groups of columns per wanted neighbour in the search for the nearest
COPIES = 1e-6  # squared distances below this share of the largest squared length are rounding errors: 0
EXPANSION_SHARE = 2 / 3  # a neighbour's own set joins when more than this share of it is known already


def k_reciprocal(
    query_features: ArrayLike, gallery_features: ArrayLike, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> Floats:
    """Re-ranked distances [Q, G] float32 in 0..1: lambda * original + (1 - lambda) * Jaccard.

    The original distance is the squared Euclidean one, divided by the query's largest distance to any image; weights
    of neighbours are exp(-original). Both are what the authors of the paper computed their tables with, as is "more
    than" two thirds in the expansion of the neighbourhood. Neighbours are searched among queries and gallery alike.

    Extra memory: one float32 copy of the features, the result, and about 0.3 GB.

    Args:
        query_features: [Q, D] finite numbers, an array or a torch tensor.
        gallery_features: [G, D].
        k1: neighbours that must be mutual; an image itself is not counted.
        k2: neighbours (the image itself included) whose descriptions are averaged; 1: none.
        lambda_value: share of the original distance, 0..1.

    Raises UsageError for shapes or numbers that do not fit, DgreidError for features that are not finite.
    """
    query, gallery = as_numpy(query_features), as_numpy(gallery_features)
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1:] != gallery.shape[1:] or not query.size * gallery.size:
        raise UsageError(
            f"shapes do not fit: query {query.shape}, gallery {gallery.shape}", fix="give features [Q, D] and [G, D]"
        )
    if k1 < 1 or k2 < 1 or not 0 <= lambda_value <= 1:
        raise UsageError(
            f"k1={k1}, k2={k2}, lambda_value={lambda_value}", fix="give k1 and k2 of at least 1 and lambda in 0..1"
        )
    distances = _Distances(np.concatenate([query, gallery], dtype=np.float32, casting="unsafe"))
    original = np.empty((len(query), len(gallery)), np.float32)
    neighbours, largest = _neighbours(distances, max(k1 + 1, k2), original)
    described = _averaged(_descriptions(distances, neighbours[:, : k1 + 1], largest), neighbours[:, :k2])
    original *= lambda_value

    def add_jaccard(start: int, shared: Floats) -> None:
        shared /= 2 - shared  # rows sum to 1, so the sum of maxima is 2 less the sum of minima
        original[start : start + len(shared)] += (1 - lambda_value) * (1 - shared)

    _for_shared_weights(described, len(query), add_jaccard)
    return original


def _in_threads(work: Callable[..., Item], stretches: Iterable[tuple[int, int]]) -> list[Item]:
    """work(start, stop) of every stretch, by several threads: NumPy lets go of the interpreter."""
    with ThreadPoolExecutor(THREADS) as pool:  # starts and ends in half the time of a ThreadPool
        return list(pool.map(lambda stretch: work(*stretch), stretches))


class _Distances:
    """Squared Euclidean distances of all images to all, in float32; the whole table is kept only when it is small.

    Args:
        features: [N, D], is changed. Raises DgreidError when it is not finite.
    """

    def __init__(self, features: Floats) -> None:
        mean, squares = features.mean(axis=0), np.empty(len(features), np.float32)

        def prepare(start: int, stop: int) -> None:
            block = features[start:stop]
            block -= mean  # float32 resolves distances best around 0
            block *= 2**0.5  # their products are then twice those of the features
            squares[start:stop] = np.einsum("nd,nd->n", block, block) / 2

        _in_threads(prepare, _blocks(len(features), 4 * features.shape[1]))
        self._features, self._squares = features, squares
        if not np.isfinite(self._squares).all():
            raise DgreidError("features are not finite", fix="the model diverged: use an earlier checkpoint")
        self.floor = COPIES * float(self._squares.max())
        self._table: Floats | None = None

    def __len__(self) -> int:
        return len(self._features)

    def for_blocks(self, work: Callable[[int, Floats], object]) -> None:
        """work(first row, distances of a stretch of rows [rows, N]) for all rows, by several threads; an image's own
        distance, and rounding, may be below 0."""
        total = len(self)
        for first, last in _blocks(total, 4 * total, PRODUCT_BYTES):
            table = self._features[first:last] @ self._features.T
            self._table = table if len(table) == total else None

            def measure(start: int, stop: int, first: int = first, table: Floats = table) -> None:
                block = table[start:stop]
                np.subtract(self._squares, block, out=block)
                block += self._squares[first + start : first + stop, None]
                work(first + start, block)

            _in_threads(measure, _blocks(last - first, 4 * total))

    def of(self, start: int, ends: Ints, columns: Ints) -> Floats:
        """Distances of some pairs, at least 0: row start + k with columns[ends[k - 1] : ends[k]]. After
        `for_blocks`."""
        counts = np.diff(ends, prepend=0)
        if self._table is not None:
            rows = np.repeat(np.arange(start, start + len(ends)), counts)
            kept: Floats = np.maximum(self._table[rows, columns], 0)
            return kept
        found = np.empty(len(columns), np.float32)
        for row, (end, count) in enumerate(zip(ends, counts, strict=True), start=start):
            pairs = slice(end - count, end)
            found[pairs] = self._squares[row] - self._features[columns[pairs]] @ self._features[row]
        found += self._squares[columns]
        return np.maximum(found, 0, out=found)


def _neighbours(distances: _Distances, count: int, original: Floats) -> tuple[Ints, Floats]:
    """Each image's nearest images, itself first, [N, count], and its largest squared distance [N].

    Fills `original` [Q, G] with the normalised distances of the queries. Equal distances: lower index first.
    """
    total, queries = len(distances), len(original)
    count = min(count, total)
    neighbours, largest = np.empty((total, count), np.int64), np.empty(total, np.float32)

    def look(start: int, block: Floats) -> None:
        stop = start + len(block)
        largest[start:stop] = np.maximum(block.max(axis=1), np.finfo(np.float32).tiny)
        if start < queries:
            asked = slice(start, min(stop, queries))
            np.maximum(block[: asked.stop - start, queries:], 0, out=original[asked])
            original[asked] /= largest[asked, None]
        rows = np.arange(stop - start)
        block[rows, start + rows] = -np.inf  # an image is its own nearest, before its copies
        neighbours[start:stop] = _nearest(block, count, distances.floor)

    distances.for_blocks(look)
    return neighbours, largest


def _nearest(distances: Floats, count: int, floor: float) -> Ints:
    """Columns of the `count` smallest of each row, in order; what is within `floor` of 0 counts as 0, equal ones come
    in the order of their columns, -inf comes first."""
    rows, total = distances.shape
    # the smallest of each of several groups of columns: `count` of those are `count` different columns, so the largest
    # of them bounds what can be among the nearest, and little else lies below it
    size = max(1, total // (GROUPS * count))
    groups = total // size
    smallest = distances[:, : groups * size].reshape(rows, size, groups).min(axis=1)
    bound = np.maximum(np.partition(smallest, count - 1, axis=1)[:, count - 1 : count], floor)
    row, column = np.divmod(np.flatnonzero(distances <= bound), total)
    counts = np.bincount(row, minlength=rows)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = distances[row, column]
    found[(found <= floor) & (found > -np.inf)] = 0
    values, columns = np.full((rows, counts.max()), np.inf, np.float32), np.empty((rows, counts.max()), np.int64)
    values[row, place], columns[row, place] = found, column
    order = np.argsort(values, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(columns, order, axis=1)


def _descriptions(distances: _Distances, neighbours: Ints, largest: Floats) -> csr_array:
    """The weights [N, N] of every image's expanded reciprocal neighbours, rows summing to 1.

    neighbours: [N, k1 + 1], itself first.
    """
    total, count = neighbours.shape
    half = neighbours[:, : round((count - 1) / 2) + 1]
    mutual, mutual_half = _mutual(neighbours), _mutual(half)

    def describe(start: int, stop: int) -> tuple[Ints, Ints, Floats]:
        member = np.zeros((stop - start) * total, bool)  # the reciprocal neighbours of each row, row after row
        row, place = np.nonzero(mutual[start:stop])
        own = neighbours[start + row, place]
        first = row * total
        member[first + own] = True
        theirs, valid = half[own], mutual_half[own]  # [pairs, half + 1]: the candidate's own, smaller neighbourhood
        cells = first[:, None] + theirs
        joins = (member[cells] & valid).sum(axis=1) > EXPANSION_SHARE * valid.sum(axis=1)
        member[cells[joins][valid[joins]]] = True
        row, column = np.divmod(np.flatnonzero(member), total)
        ends = np.searchsorted(row, np.arange(stop - start), side="right")
        weights = np.exp(-distances.of(start, ends, column) / largest[start + row])
        counts = np.diff(ends, prepend=0)
        weights /= np.repeat(np.add.reduceat(weights, ends - counts), counts)
        return counts, column, weights

    found = _in_threads(describe, _blocks(total, max(total, 8 * count * half.shape[1])))
    counts, columns, values = (np.concatenate(each) for each in zip(*found, strict=True))
    return csr_array((values, columns, np.concatenate([[0], np.cumsum(counts)])), shape=(total, total))


def _mutual(neighbours: Ints) -> NDArray[np.bool_]:
    """[N, k]: whether an image is among the k neighbours of its neighbour."""
    total, count = neighbours.shape
    mutual, short = np.empty((total, count), bool), neighbours.astype(np.int32)  # half the memory to go through

    def look(start: int, stop: int) -> None:
        own = np.arange(start, stop, dtype=np.int32)[:, None, None]
        mutual[start:stop] = (short[neighbours[start:stop]] == own).any(axis=2)

    _in_threads(look, _blocks(total, 4 * count * count))
    return mutual


def _averaged(described: csr_array, nearest: Ints) -> csr_array:
    """Local query expansion: the mean description of each image's nearest [N, k2]."""
    total, count = nearest.shape
    shares = np.full(nearest.size, 1 / count, np.float32)
    return csr_array((shares, nearest.ravel(), count * np.arange(total + 1)), shape=described.shape) @ described


def _for_shared_weights(described: csr_array, queries: int, work: Callable[[int, Floats], object]) -> None:
    """work(first query, sums of the smaller weights [block, G]) for all queries, by several threads."""
    total, gallery = described.shape[0], described.shape[0] - queries
    searched = described[queries:].tocsc()  # by column: which gallery images have a weight there
    pairs = (described.nnz // total + 1) ** 2  # about so many weights of gallery images meet those of a query

    def share(start: int, stop: int) -> None:
        ends = described.indptr[start : stop + 1]
        row = np.repeat(np.arange(stop - start), np.diff(ends))
        column, weight = described.indices[ends[0] : ends[-1]], described.data[ends[0] : ends[-1]]
        first = searched.indptr[column]
        counts = searched.indptr[column + 1] - first
        entry = np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        smaller = np.minimum(np.repeat(weight, counts), searched.data[entry])
        cells = np.repeat(row * gallery, counts) + searched.indices[entry]
        table = np.bincount(cells, weights=smaller, minlength=(stop - start) * gallery)
        work(start, table.reshape(stop - start, gallery).astype(np.float32))

    _in_threads(share, _blocks(queries, 8 * gallery + 64 * pairs))


def _blocks(total: int, row_bytes: int, limit: int | None = None) -> Iterator[tuple[int, int]]:
    """Half-open stretches of 0..total that keep a table of `row_bytes` per row within `limit`, or BLOCK_BYTES."""
    step = max(1, (limit or BLOCK_BYTES) // max(1, row_bytes))
    for start in range(0, total, step):
        yield start, min(total, start + step)
