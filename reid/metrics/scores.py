"""From the ranks of the correct matches to retrieval scores: mAP, mINP and CMC; mean and deviation of several."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import DgreidError

SCORE_NAMES = ("mean_ap", "mean_inp", "rank_1", "rank_5", "rank_10")


@dataclass(frozen=True)
class Scores:
    """Retrieval scores, each a share in 0..1."""

    mean_ap: float  # mean average precision
    mean_inp: float  # mean inverse negative penalty (Ye et al. 2021): matches / rank of the last match
    cmc: NDArray[np.float64]  # [max_rank]; cmc[k - 1] is the share of valid queries with a match among the first k
    num_valid_queries: int  # queries of a person with at least one match left
    per_query_ap: NDArray[np.float64]  # [Q]; NaN for queries that are not valid
    per_query_inp: NDArray[np.float64]  # [Q]; the same
    per_query_rank: NDArray[np.int64]  # [Q]: 1-based rank of the first match; 0 for queries that are not valid
    ranked: NDArray[np.int64]  # [Q, L] gallery indices, nearest first, by the rule of the scores; -1: none left

    def summary(self) -> dict[str, float]:
        """mAP, mINP and Rank-1/5/10 in percent (a rank beyond `max_rank` reads as `max_rank`)."""
        ranks = {f"rank_{k}": 100 * float(self.cmc[min(k, len(self.cmc)) - 1]) for k in (1, 5, 10)}
        return {"mean_ap": 100 * self.mean_ap, "mean_inp": 100 * self.mean_inp, **ranks}

    def per_query(self) -> NDArray[np.float64]:
        """[valid queries, SCORE_NAMES] in percent; the mean over the first axis is `summary` (if max_rank >= 10)."""
        valid = self.per_query_rank > 0
        ranks = [self.per_query_rank[valid] <= k for k in (1, 5, 10)]
        return 100 * np.stack([self.per_query_ap[valid], self.per_query_inp[valid], *ranks], axis=1)


class RankedQuery(NamedTuple):
    """What one query finds."""

    query: int  # its index
    ranks: NDArray[np.int64]  # ascending 1-based ranks of its matches; empty: the query is not valid
    nearest: NDArray[np.int64]  # gallery indices of the first places


def scores_of_ranks(found: Iterable[RankedQuery], queries: int, max_rank: int, ranked: int = 0) -> Scores:
    """Scores of `queries` queries; those that are not in `found` are not valid.

    AP is the mean over correct ranks r of (hits up to r) / r. ranked: columns of `Scores.ranked`. Raises DgreidError
    when no query is valid.
    """
    average_precision = np.full(queries, np.nan)
    inverse_penalty = np.full(queries, np.nan)
    first_rank = np.zeros(queries, np.int64)
    order, hits = np.full((queries, ranked), -1, np.int64), np.arange(1, 1)
    for index, ranks, nearest in found:
        order[index, : len(nearest)] = nearest
        if len(ranks):
            if len(ranks) > len(hits):
                hits = np.arange(1, 2 * len(ranks) + 1)
            average_precision[index] = np.add.reduce(hits[: len(ranks)] / ranks) / len(ranks)
            inverse_penalty[index] = len(ranks) / ranks[-1]
            first_rank[index] = ranks[0]
    valid = int(np.count_nonzero(first_rank))
    if not valid:
        raise DgreidError(
            f"none of {queries} queries has a correct match in the gallery",
            fix="a match is a person of the query's identity from another camera; leave cameras that nobody labelled "
            "empty and look at the manifest's splits",
        )
    first_hits = np.bincount(first_rank[(first_rank > 0) & (first_rank <= max_rank)], minlength=max_rank + 1)[1:]
    return Scores(
        mean_ap=float(np.nanmean(average_precision)),
        mean_inp=float(np.nanmean(inverse_penalty)),
        cmc=np.cumsum(first_hits) / valid,
        num_valid_queries=valid,
        per_query_ap=average_precision,
        per_query_inp=inverse_penalty,
        per_query_rank=first_rank,
        ranked=order,
    )


@dataclass(frozen=True)
class Spread:
    """Of the same score over several splits or seeds."""

    mean: float
    std: float | None  # sample standard deviation (n - 1); None: one value has none
    count: int

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None for one value. A lower bound where the values share people, as random splits do."""
        return None if self.std is None else float(self.std / self.count**0.5)


def spread(values: Sequence[float]) -> Spread:
    """Mean and deviation of at least one value."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation, len(values))
