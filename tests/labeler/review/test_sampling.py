"""The estimate of the share of wrong boxes: against simulation and against the textbook's formulas."""

import math

import numpy as np
import pytest

from labeler.review.sampling import MARGIN, Z95, estimate


def test_nothing_looked_at_is_not_zero() -> None:
    found = estimate([], 1000)
    assert (found.share, found.low, found.high) == (None, 0.0, 1.0)
    infinite = Z95**2 / 4 / MARGIN**2
    assert found.needed == math.ceil(infinite / (1 + (infinite - 1) / 1000))


def test_independent_single_boxes_give_wilsons_interval() -> None:
    found = estimate([(1, 1)] * 10 + [(1, 0)] * 90, 10**9)
    p, n = 0.1, 100
    effect = (np.var([1] * 10 + [0] * 90, ddof=1) / n) / (p * (1 - p) / n)
    n /= effect
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    assert found.low == pytest.approx(centre - half, abs=1e-6)
    assert found.high == pytest.approx(centre + half, abs=1e-6)


def test_boxes_that_are_wrong_together_widen_the_interval() -> None:
    apart = estimate([(3, 1)] * 60 + [(3, 0)] * 40, 10**6)
    together = estimate([(3, 3)] * 20 + [(3, 0)] * 80, 10**6)
    assert apart.share == together.share == 0.2
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_when_all_were_looked_at_nothing_is_uncertain() -> None:
    found = estimate([(3, 1)] * 50, 50)
    assert found.low == found.share == found.high
    assert found.needed == 50


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_the_interval_holds_the_truth_in_most_samples(share: float) -> None:
    rng = np.random.default_rng(0)
    population = 2000
    bad = rng.beta(0.5, 0.5 * (1 - share) / share, population)  # images differ: some are wrong in all of their boxes
    wrong = rng.binomial(3, bad)
    truth = wrong.sum() / (3 * population)
    inside = 0
    for _ in range(300):
        chosen = rng.choice(population, 250, replace=False)
        found = estimate([(3, int(w)) for w in wrong[chosen]], population)
        inside += found.low <= truth <= found.high
    assert inside / 300 > 0.91


def test_looking_at_as_many_as_asked_for_reaches_the_margin() -> None:
    rng = np.random.default_rng(1)
    wrong = rng.binomial(3, 0.1, 5000)
    looked_at = 20
    while (found := estimate([(3, int(w)) for w in wrong[:looked_at]], 5000)).needed > looked_at:
        looked_at = min(found.needed, looked_at + 50)
    assert (found.high - found.low) / 2 <= MARGIN
    assert 200 < looked_at < 1200
