"""Open-set identification on arrays: some queries show people whom the gallery does not hold (Phillips, Grother and
Micheals, Handbook of Face Recognition, 2011, ch. 21).

A query is answered with the identity of its nearest gallery image if their distance is at most a threshold, and with
"unknown" otherwise. False alarm rate: share of the queries of unknown people that are answered with an identity.
Detection and identification rate: share of the queries of known people that are answered with the right one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import UsageError

FALSE_ALARMS = (0.1, 0.01)


@dataclass(frozen=True)
class OpenSet:
    """Shares in 0..1. rates: false alarm rate -> detection and identification rate, None where too few are
    unknown for that rate. auroc: probability that a known query is nearer to its nearest image than an unknown one."""

    rates: dict[float, float | None]
    auroc: float


def open_set(
    distances: ArrayLike, right: ArrayLike, known: ArrayLike, false_alarms: tuple[float, ...] = FALSE_ALARMS
) -> OpenSet:
    """Scores from every query's nearest gallery image.

    Args:
        distances: [Q], to it.
        right: bool [Q], whether it shows the query's person; False for unknown ones.
        known: bool [Q], whether the gallery holds the query's person.
    Raises:
        UsageError: no known or no unknown query.
    """
    near, correct, mated = np.asarray(distances, np.float64), np.asarray(right, bool), np.asarray(known, bool)
    if mated.all() or not mated.any():
        raise UsageError("open-set scores need known and unknown queries", fix="take people out of the gallery")
    strangers = np.sort(near[~mated])
    rates: dict[float, float | None] = {}
    for rate in false_alarms:
        allowed = int(rate * len(strangers))
        if not allowed:
            rates[rate] = None
            continue
        accepted = near[mated] < strangers[allowed] if allowed < len(strangers) else np.ones(mated.sum(), bool)
        rates[rate] = float(np.mean(accepted & correct[mated]))
    return OpenSet(rates, auroc(near[mated], strangers))


def auroc(nearer: ArrayLike, farther: ArrayLike) -> float:
    """Probability that a value of the first kind is below one of the second; ties count half."""
    first, second = np.asarray(nearer, np.float64), np.sort(np.asarray(farther, np.float64))
    below = np.searchsorted(second, first, "right")
    ties = below - np.searchsorted(second, first, "left")
    above: NDArray[np.float64] = len(second) - below + 0.5 * ties
    return float(above.mean() / len(second))
