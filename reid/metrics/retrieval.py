"""Retrieval scores under the Market-1501 rule: mAP, mINP and CMC from features, identities and cameras.

Only the ranks of the correct matches are needed, so the whole gallery is never put in order: the rank of a match is one
plus the number of kept gallery images that are nearer, ties going to the lower gallery index (as a stable ascending
sort would). Nearness is first read off float32 matrix products; images closer to a match, or to the last place asked
for, than their rounding error could explain are compared again in float64, so neither the scores nor the ranked lists
depend on the chunk size or on threads.
"""

from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.metrics.ground_truth import GroundTruth, as_numpy, ground_truth
from reid.metrics.scores import RankedQuery, Scores, scores_of_ranks
from shared.errors import DgreidError, UsageError

UNIT_ROUNDOFF = 2.0**-24  # float32
SMALLEST = float(np.finfo(np.float32).tiny)  # products below it may vanish
BLOCK_ROWS = 64  # feature rows gone through several times at once: they stay in the cache
COMPARED = 2**20  # distances gone through at once
PRODUCT_BYTES = 256 * 2**20  # of the distances of one matrix product: large products are efficient
THREADS = 2  # that centre features; more only wait for the memory
CENTRE_ROWS = 1024  # gallery rows whose mean is the origin; any point among the features would do

__all__ = ["Scores", "evaluate", "evaluate_distances"]


def evaluate(
    query_features: ArrayLike,
    query_ids: ArrayLike,
    query_cameras: ArrayLike | None,
    gallery_features: ArrayLike,
    gallery_ids: ArrayLike,
    gallery_cameras: ArrayLike | None,
    *,
    gallery_distractor: ArrayLike | None = None,
    gallery_junk: ArrayLike | None = None,
    max_rank: int = 50,
    ranked: int = 0,
    chunk: int | None = None,
    device: Any = None,
) -> Scores:
    """Score a ranking by Euclidean distance of the features as they are given (normalise them yourself).

    Rule of Zheng et al. 2015 (Market-1501), single query: gallery images of the query's identity and camera are
    removed; junk is dropped; a distractor is right for nobody; queries without a match left are skipped. An image
    whose camera is not labelled was taken by no other image's camera. AP is the mean over correct ranks r of
    (hits up to r) / r.

    Every number is somebody's identity or some camera, 0 and negative ones too. In the file names of Market-1501
    gallery identity 0 is a distractor and -1 junk: give gallery_distractor=ids == 0 and gallery_junk=ids == -1.
    A gallery with identity -1 is refused until `gallery_junk` says what it is (False: nothing is junk).

    Extra memory: one float32 copy of the features, and chunk x gallery float32 values, by default about 256 MiB (MSMT17
    in 2,048 dimensions: 0.8 + 0.3 GB).

    Args:
        query_features: [Q, D] numbers, a NumPy array or a torch tensor on any device.
        query_ids: [Q] integers; leave out what is not to be asked for.
        query_cameras: [Q] integers; None, NaN or masked (np.ma) where not labelled. None: no camera is labelled.
        gallery_features: [G, D].
        gallery_ids: [G]; of distractors and junk they are not read, and may be missing.
        gallery_cameras: [G], as for the queries.
        gallery_distractor: bool [G], or one for all; None: there are none.
        gallery_junk: the same.
        max_rank: length of the CMC curve; may exceed the gallery.
        ranked: how many of every query's nearest gallery images to return, also of queries without a match.
        chunk: queries compared at once; None: as many as make a table of 256 MiB.
        device: a torch device with float64 that does the work, e.g. "cuda"; None: NumPy. The scores are the same.

    Raises UsageError for shapes that do not fit, for identities and cameras that are not whole numbers, for identities
    that are missing or -1 with nothing said about them, and for max_rank or chunk below 1; DgreidError for features
    that are not finite or beyond float32, and when no query is valid.
    """
    if max_rank < 1 or (chunk is not None and chunk < 1) or ranked < 0:
        raise UsageError(
            f"max_rank={max_rank}, chunk={chunk}, ranked={ranked}", fix="give at least 1, and for ranked at least 0"
        )
    query, gallery = _features("query", query_features), _features("gallery", gallery_features)
    queries = ground_truth("query", len(query), query_ids, query_cameras)
    candidates = ground_truth("gallery", len(gallery), gallery_ids, gallery_cameras, gallery_distractor, gallery_junk)
    if query.shape[1] != gallery.shape[1]:
        raise UsageError(
            f"query features have {query.shape[1]} dimensions, gallery features {gallery.shape[1]}",
            fix="embed both with the same checkpoint",
        )

    chunk = chunk or max(1, PRODUCT_BYTES // (4 * len(gallery)))
    found = _rank(query, queries, gallery, candidates, chunk, ranked, device)
    return scores_of_ranks(found, len(query), max_rank, ranked)


def evaluate_distances(
    distances: ArrayLike,
    query_ids: ArrayLike,
    query_cameras: ArrayLike | None,
    gallery_ids: ArrayLike,
    gallery_cameras: ArrayLike | None,
    *,
    gallery_distractor: ArrayLike | None = None,
    gallery_junk: ArrayLike | None = None,
    max_rank: int = 50,
    ranked: int = 0,
) -> Scores:
    """Score a ranking by distances [Q, G] of any kind (re-ranked ones), by the same rule as `evaluate`, and with its
    identities, cameras and masks.

    Equal distances rank in gallery order. Raises UsageError for shapes that do not fit, max_rank below 1 and labels
    that `evaluate` refuses, DgreidError for distances that are not finite and when no query is valid.
    """
    table = as_numpy(distances)
    if table.ndim != 2 or max_rank < 1 or ranked < 0:
        raise UsageError(
            f"shapes do not fit: distances {table.shape}, max_rank={max_rank}, ranked={ranked}",
            fix="give distances [Q, G], max_rank of at least 1 and ranked of at least 0",
        )
    queries = ground_truth("query", len(table), query_ids, query_cameras)
    candidates = ground_truth("gallery", table.shape[1], gallery_ids, gallery_cameras, gallery_distractor, gallery_junk)
    no_junk = np.flatnonzero(~candidates.junk)

    def found() -> Iterator[RankedQuery]:
        for index, identity in enumerate(queries.identities):
            same = (candidates.identities[no_junk] == identity) & candidates.person[no_junk]
            removed = same & candidates.seen_by_camera_of(queries, index, no_junk)
            places = no_junk[~removed]
            row, right = table[index, places], np.flatnonzero(same[~removed])
            if not np.isfinite(row).all():
                raise DgreidError(f"distances of query {index} are not finite", fix="use an earlier checkpoint")
            nearer = [
                np.count_nonzero(row < row[place]) + np.count_nonzero(row[:place] == row[place]) for place in right
            ]
            nearest = places[np.argsort(row, kind="stable")[:ranked]] if ranked else places[:0]
            yield RankedQuery(int(index), np.sort(np.array(nearer, np.int64)) + 1, nearest)

    return scores_of_ranks(found(), len(table), max_rank, ranked)


def _rank(
    query: NDArray[Any],
    queries: GroundTruth,
    gallery: NDArray[Any],
    candidates: GroundTruth,
    chunk: int,
    ranked: int,
    device: Any,
) -> Iterator[RankedQuery]:
    """What every valid query finds, and with `ranked` every other one."""
    people = np.flatnonzero(candidates.person)
    by_identity = people[np.argsort(candidates.identities[people], kind="stable")]
    sorted_ids = candidates.identities[by_identity]
    first = np.searchsorted(sorted_ids, queries.identities, "left")
    last = np.searchsorted(sorted_ids, queries.identities, "right")
    in_gallery = np.flatnonzero(last > first)
    if not in_gallery.size:
        return
    step = -(-len(gallery) // CENTRE_ROWS)
    origin = gallery[::step].mean(axis=0, dtype=np.float64).astype(gallery.dtype)
    no_junk = ~candidates.junk
    wanted = np.arange(len(query)) if ranked else in_gallery

    def of_their_identity(some: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Rows of `some` queries, ascending, gallery indices of their identities, and which of them are removed."""
        counts = last[some] - first[some]
        row = np.repeat(np.arange(len(some)), counts)
        same = by_identity[np.arange(len(row)) + np.repeat(first[some] - (np.cumsum(counts) - counts), counts)]
        return row, same, candidates.seen_by_camera_of(queries, some[row], same)

    if device is not None:
        import torch  # only here: this room is for arrays

        from reid.metrics.on_device import DeviceComparison

        of_device = DeviceComparison(gallery, origin, no_junk, UNIT_ROUNDOFF, SMALLEST, torch.device(device))
        _require_short(of_device.squares)
        _require_short(of_device.squares_of(query[wanted]))
        for start in range(0, len(wanted), chunk):
            block = wanted[start : start + chunk]
            row, same, removed = of_their_identity(block)
            dropped, kept = (row[removed], same[removed]), (row[~removed], same[~removed])
            yield from of_device.block(block, query[block], dropped, kept, ranked)
        return
    centred, squares = _centred(gallery, origin)
    comparison = _Comparison(gallery, squares[no_junk])
    offsets = np.where(no_junk, squares, np.inf).astype(np.float32)  # junk is infinitely far from everybody
    rows = max(1, COMPARED // len(gallery))
    for start in range(0, len(wanted), chunk):
        block = wanted[start : start + chunk]
        moved, own_squares = _centred(query[block], origin)
        moved *= -2
        distances = moved @ centred.T  # [chunk, G]
        for top in range(0, len(block), rows):
            some = block[top : top + rows]
            table, lengths = distances[top : top + rows], np.sqrt(own_squares[top : top + rows])
            table += offsets  # squared distances less the query's own square
            row, same, removed = of_their_identity(some)
            table[row[removed], same[removed]] = np.inf
            asking = query[some]
            all_ranks = comparison.ranks(asking, lengths, table, row[~removed], same[~removed])
            nothing = same[:0]
            for place, (index, ranks) in enumerate(zip(some.tolist(), all_ranks, strict=True)):
                given = asking[place], float(lengths[place]), table[place]
                yield RankedQuery(index, ranks, comparison.nearest(*given, ranked) if ranked else nothing)


class _Comparison:
    """Ranks of matches and nearest images from a row of float32 distances, near ties settled in float64.

    Args:
        features: gallery [G, D], as given.
        squares: squared lengths of the centred gallery features that can be found.
    """

    def __init__(self, features: NDArray[Any], squares: NDArray[np.float64]) -> None:
        self._features = features
        self._largest, self._smallest = float(squares.max()), float(squares.min())

    def ranks(
        self,
        queries: NDArray[Any],
        lengths: NDArray[np.float64],
        table: NDArray[np.float32],
        row: NDArray[np.int64],
        matches: NDArray[np.int64],
    ) -> list[NDArray[np.int64]]:
        """Ascending ranks of the matches of several queries.

        Args:
            queries: [B, D] as given.
            lengths: [B] of the centred queries.
            table: [B, G] distances; inf: removed.
            row: [M] ascending, which of the queries a match belongs to.
            matches: [M], their indices in the gallery.
        """
        values = table[row, matches].astype(np.float64)
        counts = np.bincount(row, minlength=len(table))
        having, starts = np.flatnonzero(counts), (np.cumsum(counts) - counts)[counts > 0]
        margin, bounds = np.zeros(len(table)), np.full(len(table), -np.inf, np.float32)
        if having.size:
            lowest, highest = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
            margin[having] = self._margin(lengths[having], lowest, highest)
        # float32 bounds, rounded outwards: float64 ones would turn the whole table into float64
        lows = np.nextafter((values - margin[row]).astype(np.float32), np.float32(-np.inf))
        highs = np.nextafter((values + margin[row]).astype(np.float32), np.float32(np.inf))
        if having.size:
            bounds[having] = np.maximum.reduceat(highs, starts)
        near_row, places = np.divmod(np.flatnonzero(table <= bounds[:, None]), table.shape[1])
        near = table[near_row, places]
        keys, ends = np.sort(_keys(near_row, near)), np.cumsum(np.bincount(near_row, minlength=len(table)))
        before = (ends - np.diff(ends, prepend=0))[row]  # how many of `keys` belong to earlier rows
        nearer = np.searchsorted(keys, _keys(row, lows)) - before
        not_farther = np.searchsorted(keys, _keys(row, highs), "right") - before
        unclear = np.flatnonzero(not_farther > nearer + 1)
        for query in np.unique(row[unclear]):
            of_query = slice(ends[query - 1] if query else 0, ends[query])
            doubtful = unclear[row[unclear] == query]
            rivals = [
                places[of_query][(near[of_query] >= lows[match]) & (near[of_query] <= highs[match])]
                for match in doubtful
            ]
            compared = np.unique(np.concatenate(rivals))
            exact = self._exact(queries[query], compared)
            for match, others in zip(doubtful, rivals, strict=True):
                own = exact[np.searchsorted(compared, matches[match])]
                theirs = exact[np.searchsorted(compared, others)]
                nearer[match] += np.count_nonzero((theirs < own) | ((theirs == own) & (others < matches[match])))
        ranks = nearer[np.lexsort((nearer, row))] + 1
        stops = np.cumsum(counts).tolist()
        return [ranks[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]

    def nearest(self, query: NDArray[Any], length: float, row: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Indices of the `count` nearest images that are not removed, in order; fewer where fewer are left."""
        smallest = np.partition(row, count - 1)[:count] if count < len(row) else row
        last = smallest.max()
        if np.isfinite(last):
            bound = last + self._margin(np.float64(length), np.float64(smallest.min()), np.float64(last))
            places = np.flatnonzero(row <= np.nextafter(np.float32(bound), np.float32(np.inf)))
        else:
            places = np.flatnonzero(np.isfinite(row))
        order = np.argsort(self._exact(query, places), kind="stable")[:count]
        ordered: NDArray[np.int64] = places[order]
        return ordered

    def _margin(self, length: Any, lowest: Any, highest: Any) -> Any:
        """The most by which rounding can move another float32 distance against one between `lowest` and `highest`.

        Rounding errors of a dot product of D terms grow like sqrt(D) times its partial sums (Higham and Mary 2019),
        and partial sums of centred features stay near the line from 0 to the result, within about
        |q| |g| / sqrt(D); eight such steps are allowed for. Of one query or, in float64 arrays, of several.
        """
        dimensions = self._features.shape[1]
        bound = length * self._largest**0.5
        product = np.maximum(self._largest - lowest, highest - self._smallest) / 2  # the largest |q . g|
        of_dot = dimensions**0.5 * np.minimum(product, bound) + 8 * bound
        of_sum = self._largest + 2 * bound
        return 4 * UNIT_ROUNDOFF * (of_dot + of_sum) + SMALLEST * dimensions

    def _exact(self, query: NDArray[Any], rivals: NDArray[np.int64]) -> NDArray[np.float64]:
        """Squared distances to `rivals` in float64, summed row by row so that equal rows give equal numbers."""
        own = query.astype(np.float64)
        exact = np.empty(len(rivals))
        for start in range(0, len(rivals), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            difference = self._features[rivals[rows]].astype(np.float64)
            difference -= own
            np.square(difference, out=difference)
            exact[rows] = difference.sum(axis=1)
        return exact


def _keys(rows: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Numbers in the order of (row, value): a float's bits are in its order once those of negative ones are turned."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(2**31))
    return rows.astype(np.uint64) << np.uint64(32) | ordered


def _features(name: str, features: ArrayLike) -> NDArray[Any]:
    """Features [N, D] as given, float32 or float64, finite."""
    values = as_numpy(features)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
    if values.ndim != 2 or not values.size:
        raise UsageError(
            f"{name} shapes do not fit: features {values.shape}", fix="give features [N, D] with N and D at least 1"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        doubtful = np.flatnonzero(~np.isfinite(values.sum(axis=1)))  # finite for no row that holds NaN or infinity
    rows = doubtful[~np.isfinite(values[doubtful]).all(axis=1)]
    if rows.size:
        raise DgreidError(
            f"{len(rows)} {name} features are not finite (first: row {rows[0]})",
            fix="the model diverged or overflowed in half precision: embed in float32 or use an earlier checkpoint",
        )
    return values


def _centred(features: NDArray[Any], origin: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The features as seen from `origin`, and their squared lengths. Raises DgreidError when those are too large.

    Distances do not change when both sides move; around a point among the features float32 resolves them best.
    """
    moved, squares = np.empty(features.shape, np.float32), np.empty(len(features))

    def fill(start: int) -> None:
        rows = slice(start, start + BLOCK_ROWS)
        with np.errstate(over="ignore"):
            np.subtract(features[rows], origin, out=moved[rows], casting="same_kind")
        exact = moved[rows].astype(np.float64)
        squares[rows] = np.einsum("nd,nd->n", exact, exact)

    with ThreadPool(THREADS) as pool:  # NumPy lets go of the interpreter
        pool.map(fill, range(0, len(features), BLOCK_ROWS))
    _require_short(squares)
    return moved, squares


def _require_short(squares: NDArray[np.float64]) -> None:
    """Raises DgreidError where distances of features with these squared lengths may overflow float32."""
    if not squares.max() < np.finfo(np.float32).max / 8:
        raise DgreidError(
            f"features are too long for float32 (length {squares.max() ** 0.5:.1e})", fix="scale or normalise them"
        )
