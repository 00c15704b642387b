"""Breakdowns of the scores of a target: intervals, camera pairs, parts, histograms, over all of its splits."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.evaluation.ranking import Ranking, Side
from reid.metrics.paired import paired_difference
from reid.metrics.scores import SCORE_NAMES, Scores
from shared.errors import DgreidError

LEVEL = 0.95  # of the confidence intervals
RESAMPLES = 1000
BINS = 40
HISTOGRAM_QUERIES = 500  # per split, spread over all valid ones; all of them would take as long as the scores


def score_details(
    rankings: Sequence[Ranking], scores: Sequence[Scores], parts: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """Everything below over the splits of one target, as JSON-able data; scores in percent.

    Args:
        rankings: one per split.
        scores: of each of them.
        parts: the model's parts; features are then 1 + len(parts) blocks of equal length.
        seed: of the resampling.
    """
    identities = [ranking.query.identities for ranking in rankings]
    intervals = bootstrap_intervals(scores, identities, seed=seed)
    return {
        "queries": sum(one.num_valid_queries for one in scores),
        "level": LEVEL,
        "resamples": RESAMPLES,
        "intervals": {name: list(ends) for name, ends in intervals.items()},
        "camera_pairs": camera_pairs(rankings),
        "parts": part_scores(rankings, parts) if rankings[0].distances is None else {},
        "ap_histogram": ap_histogram(scores),
        "distance_histogram": distance_histogram(rankings, scores),
    }


def gains(
    first: Sequence[Scores], second: Sequence[Scores], identities: Sequence[ArrayLike], *, seed: int
) -> dict[str, dict[str, Any]]:
    """By how much the first model is better on the same queries, as JSON-able data in percent; see
    reid.metrics.paired.

    Args:
        first, second: one per split. identities: of each split's queries [Q].
    """
    found = {}
    for name, values_of in PAIRED_SCORES.items():
        one = paired_difference(
            [values_of(scores) for scores in first],
            [values_of(scores) for scores in second],
            identities,
            seed=seed,
        )
        found[name] = asdict(one)
    return found


def _average_precision(scores: Scores) -> NDArray[np.float64]:
    return 100 * scores.per_query_ap


def _first_is_right(scores: Scores) -> NDArray[np.float64]:
    rank = scores.per_query_rank
    return np.where(rank > 0, 100.0 * (rank == 1), np.nan)


PAIRED_SCORES = {"mean_ap": _average_precision, "rank_1": _first_is_right}


def bootstrap_intervals(
    scores: Sequence[Scores],
    query_ids: Sequence[ArrayLike],
    *,
    samples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap interval (Efron 1979) of the mean of every score over the splits, in percent.

    Identities are drawn with replacement, each with all its queries: images of one person are not independent. Every
    resample draws once among the identities of all splits, and each split is scored on those of its queries that were
    drawn; the resampled value is the mean over the splits. Splits share people: drawing in each of them on its own
    would treat ten overlapping halves as ten independent samples and give intervals that are far too narrow. A split
    of which nobody was drawn is left out of that resample. The galleries stay as they are, and so do the splits.

    Args:
        scores: one per split.
        query_ids: of each split [Q], of the scored queries.
    """
    valid = [np.asarray(ids)[one.per_query_rank > 0] for one, ids in zip(scores, query_ids, strict=True)]
    people = np.unique(np.concatenate(valid))
    count = len(people)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
    total, counted = np.zeros((samples, len(SCORE_NAMES))), np.zeros((samples, 1))
    for one, identities in zip(scores, valid, strict=True):
        group = np.searchsorted(people, identities)
        sums = np.zeros((count, len(SCORE_NAMES)))
        np.add.at(sums, group, one.per_query())
        queries = (drawn @ np.bincount(group, minlength=count))[:, None]
        total += drawn @ sums / np.maximum(queries, 1)
        counted += queries > 0
    means = total / np.maximum(counted, 1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (float(low[k]), float(high[k])) for k, name in enumerate(SCORE_NAMES)}


def camera_pairs(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Scores of the queries of one camera against the gallery images of one other camera, for pairs with matches.

    Each has query_camera, gallery_camera, queries (valid ones of all splits), mean_ap, rank_1 (means over the splits
    that have the pair). Nothing where cameras are unknown. A pair searches a part of the gallery, so the pairs do not
    average to the total, except where there are only two cameras and each split asks from one of them.
    """
    found: dict[tuple[int, int], list[Scores]] = defaultdict(list)
    for ranking in rankings:
        query_cameras, gallery_cameras = ranking.query.cameras, ranking.gallery.cameras
        for query_camera in np.unique(query_cameras.compressed()):
            for gallery_camera in np.unique(gallery_cameras.compressed()):
                pair = ranking.only(
                    (query_cameras == query_camera).filled(False), (gallery_cameras == gallery_camera).filled(False)
                )
                people = np.intersect1d(pair.query.identities.compressed(), pair.gallery.identities.compressed())
                if query_camera != gallery_camera and people.size:
                    found[int(query_camera), int(gallery_camera)].append(pair.scores(max_rank=10))
    return [
        {
            "query_camera": query_camera,
            "gallery_camera": gallery_camera,
            "queries": sum(one.num_valid_queries for one in scores),
            "mean_ap": 100 * float(np.mean([one.mean_ap for one in scores])),
            "rank_1": 100 * float(np.mean([one.cmc[0] for one in scores])),
        }
        for (query_camera, gallery_camera), scores in sorted(found.items())
    ]


def part_scores(rankings: Sequence[Ranking], parts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Scores of the whole-image block and of each part's block of the feature alone, each normalised to length 1;
    means over the splits."""
    names = ("whole image", *parts)
    length, rest = divmod(rankings[0].query.features.shape[1], len(names))
    if rest or not parts:
        return {}
    found = {}
    for place, name in enumerate(names):
        block = slice(place * length, (place + 1) * length)
        try:
            alone = [Ranking(_block(one.query, block), _block(one.gallery, block)) for one in rankings]
            summaries = [one.scores(max_rank=10).summary() for one in alone]
        except DgreidError:  # a block that is not finite has no score
            continue
        found[name] = {key: float(np.mean([one[key] for one in summaries])) for key in ("mean_ap", "rank_1")}
    return found


def ap_histogram(scores: Sequence[Scores]) -> dict[str, list[float]]:
    """Queries of all splits by average precision: `edges` (BINS + 1, percent) and `queries` (BINS)."""
    valid = np.concatenate([one.per_query_ap[one.per_query_rank > 0] for one in scores])
    counts, edges = np.histogram(100 * valid, bins=BINS, range=(0, 100))
    return {"edges": edges.tolist(), "queries": counts.tolist()}


def distance_histogram(rankings: Sequence[Ranking], scores: Sequence[Scores]) -> dict[str, list[float]]:
    """Shares of the distances to images of the `same` person and of `other` people, by `edges`, over all splits.

    Over up to HISTOGRAM_QUERIES valid queries of each split; junk and the query's own camera's images of its person
    are left out.
    """
    ends, same_person, other_people = [], [], []
    for ranking, one in zip(rankings, scores, strict=True):
        valid = np.flatnonzero(one.per_query_rank > 0)
        chosen = valid[np.unique(np.linspace(0, len(valid) - 1, HISTOGRAM_QUERIES).round().astype(int))]
        distances, same = ranking.distances_of(chosen), ranking.same_person(chosen)
        ends.append((float(distances.min()), float(distances.max())))
        same_person.append(distances[same & ~ranking.same_camera(chosen)])
        other_people.append(distances[~same & ~ranking.gallery.junk])
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    edges = np.linspace(lowest, max(highest, 1e-6), BINS + 1)
    return {
        "edges": edges.tolist(),
        "same": _shares(np.concatenate(same_person), edges),
        "other": _shares(np.concatenate(other_people), edges),
    }


def _shares(values: NDArray[np.float32], edges: NDArray[np.float64]) -> list[float]:
    counts, _ = np.histogram(values, bins=edges)
    return [float(share) for share in counts / max(1, counts.sum())]


def _block(side: Side, block: slice) -> Side:
    features = side.features[:, block]
    lengths = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return replace(side, features=features / lengths)
