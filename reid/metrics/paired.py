"""Is one model better than another on the same queries? A paired test over identities.

Images of one person are not independent, and splits share people, so identities are what is exchanged: under the
hypothesis that the models are equal, swapping them for all queries of one identity changes nothing (a randomisation
test, Fisher 1935; for retrieval Smucker et al., CIKM 2007). The interval draws identities with replacement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

PERMUTATIONS = 10_000
LEVEL = 0.95
_AT_ONCE = 500  # permutations: memory stays at 500 x identities


@dataclass(frozen=True)
class PairedDifference:
    """difference: first minus second, the mean over splits of the mean over queries. low, high: its 95 % percentile
    bootstrap interval. p_value: two-sided. All but p_value and identities in the unit of the scores."""

    difference: float
    low: float
    high: float
    p_value: float
    identities: int


def paired_difference(
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    identities: Sequence[ArrayLike],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> PairedDifference:
    """Args:
        first, second: scores of every split's queries [Q]; NaN: not scored, in both or it is an error.
        identities: whose query it is [Q], of every split; one identity in several splits is exchanged in all.

    Raises ValueError when the two are not of the same queries, or none is scored.
    """
    gaps = [np.asarray(a, float) - np.asarray(b, float) for a, b in zip(first, second, strict=True)]
    for a, b in zip(first, second, strict=True):
        if not np.array_equal(np.isnan(np.asarray(a, float)), np.isnan(np.asarray(b, float))):
            raise ValueError("the two are not scored on the same queries")
    scored = [~np.isnan(gap) for gap in gaps]
    groups = [np.asarray(ids)[valid] for ids, valid in zip(identities, scored, strict=True)]
    people, group = np.unique(np.concatenate(groups), return_inverse=True)
    if not len(people):
        raise ValueError("no query is scored")
    ends = np.cumsum([len(one) for one in groups])[:-1]
    # of every split and identity: the sum of the gaps, and how many queries
    sums, counts = np.zeros((len(gaps), len(people))), np.zeros((len(gaps), len(people)))
    for split, (gap, valid, place) in enumerate(zip(gaps, scored, np.split(group, ends), strict=True)):
        np.add.at(sums[split], place, gap[valid])
        np.add.at(counts[split], place, 1)
    used = counts.sum(axis=1) > 0
    sums, counts = sums[used], counts[used]
    weights = (sums / counts.sum(axis=1, keepdims=True)).mean(axis=0)  # the difference is their sum
    difference = float(weights.sum())
    rng = np.random.default_rng(seed)
    as_far = 0
    for start in range(0, permutations, _AT_ONCE):
        signs = rng.choice((-1.0, 1.0), (min(_AT_ONCE, permutations - start), len(people)))
        as_far += int(np.count_nonzero(np.abs(signs @ weights) >= abs(difference) - 1e-12))
    low, high = np.quantile(_resampled(sums, counts, rng), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return PairedDifference(difference, float(low), float(high), (as_far + 1) / (permutations + 1), len(people))


def _resampled(sums: NDArray[np.float64], counts: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The difference over 1,000 draws of as many identities, each with all its queries of every split."""
    people = sums.shape[1]
    drawn = rng.multinomial(people, np.full(people, 1 / people), size=1000).astype(float)
    queries = drawn @ counts.T  # [draws, S]
    means = drawn @ sums.T / np.maximum(queries, 1)
    found: NDArray[np.float64] = means.sum(axis=1) / np.maximum((queries > 0).sum(axis=1), 1)
    return found
