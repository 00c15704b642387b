"""What stands behind a score: how sure it is, which cameras and parts it comes from, how distances are spread."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.evaluation.ranking import Ranking, Side
from reid.metrics.scores import SCORE_NAMES, Scores
from shared.errors import DgreidError

LEVEL = 0.95  # of the confidence intervals
RESAMPLES = 1000
BINS = 40
HISTOGRAM_QUERIES = 500  # spread over all valid ones; distances of every query would take as long as the scores


def score_details(ranking: Ranking, scores: Scores, parts: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Everything below for one test, as JSON-able data; scores in percent.

    Args:
        scores: of this ranking.
        parts: the model's parts; features are then 1 + len(parts) blocks of equal length.
        seed: of the resampling.
    """
    intervals = bootstrap_intervals(scores, ranking.query.identities, seed=seed)
    return {
        "queries": scores.num_valid_queries,
        "level": LEVEL,
        "intervals": {name: list(ends) for name, ends in intervals.items()},
        "camera_pairs": camera_pairs(ranking),
        "parts": part_scores(ranking, parts) if ranking.distances is None else {},
        "ap_histogram": ap_histogram(scores),
        "distance_histogram": distance_histogram(ranking, scores),
    }


def bootstrap_intervals(
    scores: Scores, query_ids: ArrayLike, *, samples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap interval (Efron 1979) of every score, in percent.

    Identities are drawn with replacement, each with all its queries: images of one person are not independent. The
    gallery stays as it is. query_ids: [Q], of the scored queries.
    """
    values = scores.per_query()
    identities, group = np.unique(np.asarray(query_ids)[scores.per_query_rank > 0], return_inverse=True)
    people = len(identities)
    sums = np.zeros((people, values.shape[1]))
    np.add.at(sums, group, values)
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=samples)
    means = drawn @ sums / (drawn @ np.bincount(group, minlength=people))[:, None]  # [samples, scores]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (float(low[k]), float(high[k])) for k, name in enumerate(SCORE_NAMES)}


def camera_pairs(ranking: Ranking) -> list[dict[str, Any]]:
    """Scores of the queries of one camera against the gallery images of one camera, for pairs that have matches.

    Each has query_camera, gallery_camera, queries (valid ones), mean_ap, rank_1. Nothing where cameras are unknown.
    """
    pairs = []
    asked, found_in = ranking.query.cameras, ranking.gallery.cameras
    for asking in np.unique(asked.compressed()):
        for searched in np.unique(found_in.compressed()):
            one = ranking.only((asked == asking).filled(False), (found_in == searched).filled(False))
            people = np.intersect1d(one.query.identities.compressed(), one.gallery.identities.compressed())
            if asking == searched or not people.size:
                continue
            found = one.scores(max_rank=10)
            names = {"query_camera": int(asking), "gallery_camera": int(searched), "queries": found.num_valid_queries}
            pairs.append({**names, "mean_ap": 100 * found.mean_ap, "rank_1": 100 * float(found.cmc[0])})
    return pairs


def part_scores(ranking: Ranking, parts: Sequence[str]) -> dict[str, dict[str, float]]:
    """What the whole-image block and each part's block of the feature reach alone, each normalised to length 1."""
    names = ("whole image", *parts)
    length, rest = divmod(ranking.query.features.shape[1], len(names))
    if rest or not parts:
        return {}
    found = {}
    for place, name in enumerate(names):
        block = slice(place * length, (place + 1) * length)
        try:
            one = Ranking(_block(ranking.query, block), _block(ranking.gallery, block)).scores(max_rank=10).summary()
        except DgreidError:  # a block that is not finite: its part says nothing
            continue
        found[name] = {key: one[key] for key in ("mean_ap", "rank_1")}
    return found


def ap_histogram(scores: Scores) -> dict[str, list[float]]:
    """Queries by average precision: `edges` (BINS + 1, percent) and `queries` (BINS)."""
    counts, edges = np.histogram(100 * scores.per_query_ap[scores.per_query_rank > 0], bins=BINS, range=(0, 100))
    return {"edges": edges.tolist(), "queries": counts.tolist()}


def distance_histogram(ranking: Ranking, scores: Scores) -> dict[str, list[float]]:
    """Shares of the distances to images of the `same` person and of `other` people, by `edges`.

    Over up to HISTOGRAM_QUERIES valid queries; junk and the query's own camera's images of its person are left out.
    """
    valid = np.flatnonzero(scores.per_query_rank > 0)
    chosen = valid[np.unique(np.linspace(0, len(valid) - 1, HISTOGRAM_QUERIES).round().astype(int))]
    distances = ranking.distances_of(chosen)
    same = ranking.same_person(chosen)
    other = ~same & ~ranking.gallery.junk
    edges = np.linspace(float(distances.min()), max(float(distances.max()), 1e-6), BINS + 1)
    return {
        "edges": edges.tolist(),
        "same": _shares(distances[same & ~ranking.same_camera(chosen)], edges),
        "other": _shares(distances[other], edges),
    }


def _shares(values: NDArray[np.float32], edges: NDArray[np.float64]) -> list[float]:
    counts, _ = np.histogram(values, bins=edges)
    return [float(share) for share in counts / max(1, counts.sum())]


def _block(side: Side, block: slice) -> Side:
    features = side.features[:, block]
    lengths = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return replace(side, features=features / lengths)
