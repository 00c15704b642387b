"""Retrieval scores under the Market-1501 rule: mAP, mINP and CMC from features, identities and cameras.

Only the ranks of the correct matches are needed, so the gallery is never put in order: the rank of a match is one plus
the number of kept gallery images that are nearer, ties going to the lower gallery index (as a stable ascending sort
would). Nearness is first read off float32 matrix products; images closer to a match than their rounding error could
explain are compared again in float64, so the scores depend neither on the chunk size nor on threads.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.metrics.ground_truth import GroundTruth, as_numpy, ground_truth
from reid.metrics.scores import Scores, scores_of_ranks
from shared.errors import DgreidError, UsageError

UNIT_ROUNDOFF = 2.0**-24  # float32
SMALLEST = float(np.finfo(np.float32).tiny)  # products below it may vanish
BLOCK_ROWS = 64  # feature rows gone through several times at once: they stay in the cache
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
    chunk: int = 512,
) -> Scores:
    """Score a ranking by Euclidean distance of the features as they are given (normalise them yourself).

    Rule of Zheng et al. 2015 (Market-1501), single query: gallery images of the query's identity and camera are
    removed; junk is dropped; a distractor is right for nobody; queries without a match left are skipped. An image
    whose camera is not labelled was taken by no other image's camera. AP is the mean over correct ranks r of
    (hits up to r) / r.

    Every number is somebody's identity or some camera, 0 and negative ones too. In the file names of Market-1501
    gallery identity 0 is a distractor and -1 junk: give gallery_distractor=ids == 0 and gallery_junk=ids == -1.
    A gallery with identity -1 is refused until `gallery_junk` says what it is (False: nothing is junk).

    Extra memory: one float32 copy of the features, and chunk x gallery float32 values (MSMT17 in 2,048 dimensions:
    0.8 + 0.2 GB).

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
        chunk: queries compared at once.

    Raises UsageError for shapes that do not fit, for identities and cameras that are no whole numbers, for identities
    that are missing or -1 with nothing said about them, and for numbers below 1; DgreidError for features that are not
    finite or beyond float32, and when no query is valid.
    """
    if max_rank < 1 or chunk < 1:
        raise UsageError(f"max_rank={max_rank}, chunk={chunk}", fix="give numbers of at least 1")
    query, gallery = _features("query", query_features), _features("gallery", gallery_features)
    asking = ground_truth("query", len(query), query_ids, query_cameras)
    searched = ground_truth("gallery", len(gallery), gallery_ids, gallery_cameras, gallery_distractor, gallery_junk)
    if query.shape[1] != gallery.shape[1]:
        raise UsageError(
            f"query features have {query.shape[1]} dimensions, gallery features {gallery.shape[1]}",
            fix="embed both with the same checkpoint",
        )

    return scores_of_ranks(_ranks_of_matches(query, asking, gallery, searched, chunk), len(query), max_rank)


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
) -> Scores:
    """Score a ranking by distances [Q, G] of any kind (re-ranked ones), by the same rule as `evaluate`, and with its
    identities, cameras and masks.

    Equal distances rank in gallery order. Raises UsageError for shapes that do not fit, max_rank below 1 and labels
    that `evaluate` refuses, DgreidError for distances that are not finite and when no query is valid.
    """
    table = as_numpy(distances)
    if table.ndim != 2 or max_rank < 1:
        raise UsageError(
            f"shapes do not fit: distances {table.shape}, max_rank={max_rank}",
            fix="give distances [Q, G], and max_rank of at least 1",
        )
    asking = ground_truth("query", len(table), query_ids, query_cameras)
    searched = ground_truth("gallery", table.shape[1], gallery_ids, gallery_cameras, gallery_distractor, gallery_junk)
    kept = np.flatnonzero(~searched.junk)

    def found() -> Iterator[tuple[int, NDArray[np.int64]]]:
        for index, identity in enumerate(asking.identities):
            own = (searched.identities[kept] == identity) & searched.person[kept]
            seen_by_it = own & searched.seen_by_camera_of(asking, index, kept)
            row, right = table[index, kept[~seen_by_it]], np.flatnonzero(own[~seen_by_it])
            if not np.isfinite(row).all():
                raise DgreidError(f"distances of query {index} are not finite", fix="use an earlier checkpoint")
            nearer = [
                np.count_nonzero(row < row[place]) + np.count_nonzero(row[:place] == row[place]) for place in right
            ]
            if nearer:
                yield int(index), np.sort(np.array(nearer)) + 1

    return scores_of_ranks(found(), len(table), max_rank)


def _ranks_of_matches(
    query: NDArray[Any], asking: GroundTruth, gallery: NDArray[Any], searched: GroundTruth, chunk: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (query index, ascending 1-based ranks of its matches) for every valid query."""
    people = np.flatnonzero(searched.person)
    by_identity = people[np.argsort(searched.identities[people], kind="stable")]
    sorted_ids = searched.identities[by_identity]
    first = np.searchsorted(sorted_ids, asking.identities, "left")
    last = np.searchsorted(sorted_ids, asking.identities, "right")
    askable = np.flatnonzero(last > first)
    if not askable.size:
        return
    step = -(-len(gallery) // CENTRE_ROWS)
    origin = gallery[::step].mean(axis=0, dtype=np.float64).astype(gallery.dtype)
    centred, squares = _centred(gallery, origin)
    kept = ~searched.junk
    comparison = _Comparison(gallery, squares[kept])
    offsets = np.where(kept, squares, np.inf).astype(np.float32)  # junk is infinitely far from everybody
    for start in range(0, len(askable), chunk):
        block = askable[start : start + chunk]
        moved, own_squares = _centred(query[block], origin)
        moved *= -2
        distances = moved @ centred.T  # [chunk, G]
        distances += offsets  # squared distances less the query's own square
        for row, length, index in zip(distances, np.sqrt(own_squares), block, strict=True):
            same = by_identity[first[index] : last[index]]
            seen_by_it = searched.seen_by_camera_of(asking, index, same)
            matches = same[~seen_by_it]
            if matches.size:
                row[same[seen_by_it]] = np.inf
                yield int(index), comparison.ranks(query[index], float(length), row, matches)


class _Comparison:
    """Ranks of matches from a row of float32 distances, near ties settled in float64.

    Args:
        features: gallery [G, D], as given.
        squares: squared lengths of the centred gallery features that can be found.
    """

    def __init__(self, features: NDArray[Any], squares: NDArray[np.float64]) -> None:
        self._features = features
        self._largest, self._smallest = float(squares.max()), float(squares.min())

    def ranks(
        self, query: NDArray[Any], length: float, row: NDArray[np.float32], matches: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """query [D] as given, its centred length, row [G] float32 (inf: removed), matches: indices. Ascending ranks."""
        values = row[matches].astype(np.float64)
        margin = self._margin(length, values.min(), values.max())
        # float32 bounds, rounded outwards: a float64 bound would turn the whole row into float64
        lows = np.nextafter((values - margin).astype(np.float32), np.float32(-np.inf))
        highs = np.nextafter((values + margin).astype(np.float32), np.float32(np.inf))
        places = np.flatnonzero(row <= highs.max())
        near = row[places]
        ordered = np.sort(near)
        nearer, not_farther = np.searchsorted(ordered, lows), np.searchsorted(ordered, highs, "right")
        unclear = np.flatnonzero(not_farther > nearer + 1)
        rivals = [places[(near >= lows[match]) & (near <= highs[match])] for match in unclear]
        if rivals:
            asked = np.unique(np.concatenate(rivals))
            exact = self._exact(query, asked)
            for match, others in zip(unclear, rivals, strict=True):
                own = exact[np.searchsorted(asked, matches[match])]
                theirs = exact[np.searchsorted(asked, others)]
                nearer[match] += np.count_nonzero((theirs < own) | ((theirs == own) & (others < matches[match])))
        return np.sort(nearer) + 1

    def _margin(self, length: float, lowest: float, highest: float) -> float:
        """The most by which rounding can move another float32 distance against one between `lowest` and `highest`.

        Rounding errors of a dot product of D terms grow like sqrt(D) times its partial sums (Higham and Mary 2019),
        and partial sums of centred features stay near the line from 0 to the result, within about
        |q| |g| / sqrt(D); eight such steps are allowed for.
        """
        dimensions = self._features.shape[1]
        bound = length * self._largest**0.5
        product = max(self._largest - lowest, highest - self._smallest) / 2  # the largest |q . g|
        of_dot = dimensions**0.5 * min(product, bound) + 8 * bound
        of_sum = self._largest + 2 * bound
        return float(4 * UNIT_ROUNDOFF * (of_dot + of_sum) + SMALLEST * dimensions)

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


def _features(name: str, features: ArrayLike) -> NDArray[Any]:
    """Features [N, D] as given, float32 or float64, finite."""
    values = as_numpy(features)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
    if values.ndim != 2 or not values.size:
        raise UsageError(
            f"{name} shapes do not fit: features {values.shape}", fix="give features [N, D] with N and D at least 1"
        )
    rows = np.flatnonzero(
        ~np.concatenate(
            [np.isfinite(values[start : start + BLOCK_ROWS]).all(axis=1) for start in range(0, len(values), BLOCK_ROWS)]
        )
    )
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
    for start in range(0, len(features), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        with np.errstate(over="ignore"):
            moved[rows] = features[rows] - origin
        squares[rows] = np.square(moved[rows], dtype=np.float64).sum(axis=1)
    if not squares.max() < np.finfo(np.float32).max / 8:
        raise DgreidError(
            f"features are too long for float32 (length {squares.max() ** 0.5:.1e})", fix="scale or normalise them"
        )
    return moved, squares
