"""How good probabilities and thresholds are, on arrays: reliability, false accept rates. "Same" is one person on both
images of a pair.

Pairs of one person are rare, and how rare is not the model's to know. So both kinds of pairs weigh the same in total:
probabilities are those of a pair that is as likely to show one person as two.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import UsageError

BINS = 15
ENOUGH = 10  # pairs beyond a threshold, without which its rate is not known


def balanced_weights(same: ArrayLike) -> NDArray[np.float64]:
    """Weights [N] of pairs, 0.5 in total for each kind. Raises UsageError when there are not both kinds."""
    truth = np.asarray(same, bool)
    counts = np.count_nonzero(truth), np.count_nonzero(~truth)
    if not all(counts):
        raise UsageError(
            f"{counts[0]} pairs of one person and {counts[1]} of two", fix="give images of several people, seen often"
        )
    return np.where(truth, 0.5 / counts[0], 0.5 / counts[1])


@dataclass(frozen=True)
class Reliability:
    """ece: expected calibration error (Naeini et al. 2015), the mean over BINS bins of |share of same - mean
    probability|, weighted by the bins. brier: mean squared difference of probability and truth (Brier 1950)."""

    ece: float
    brier: float


def reliability(probabilities: ArrayLike, same: ArrayLike) -> Reliability:
    """probabilities [N] in 0..1 that the pairs show one person, and whether they do: bool [N]; balanced weights."""
    given, truth = np.asarray(probabilities, np.float64), np.asarray(same, np.float64)
    weights = balanced_weights(truth)
    place = np.minimum((given * BINS).astype(int), BINS - 1)
    sums = [np.bincount(place, weights * values, BINS) for values in (given, truth)]
    return Reliability(float(np.abs(sums[0] - sums[1]).sum()), float((weights * (given - truth) ** 2).sum()))


def threshold_at(different: ArrayLike, rate: float) -> float | None:
    """The lowest similarity that at most this share of pairs of different people reaches or exceeds.

    different: similarities [N] of pairs of different people. None where fewer than ENOUGH of them lie beyond it.
    """
    values = np.sort(np.asarray(different, np.float64))
    beyond = int(rate * len(values))
    if beyond < ENOUGH:
        return None
    return float(np.nextafter(values[len(values) - beyond - 1], np.inf))


def accept_rate(similarities: ArrayLike, threshold: float) -> float:
    """Share of pairs at or above the threshold: of different people the false accept rate, of one person the true."""
    return float(np.mean(np.asarray(similarities) >= threshold))
