"""Calibration and open-set measures against their definitions, written naively."""

import numpy as np
import pytest

from reid.metrics.calibration import accept_rate, balanced_weights, reliability, threshold_at
from reid.metrics.open_set import auroc, open_set
from shared.errors import UsageError


def test_reliability_is_the_definition() -> None:
    rng = np.random.default_rng(0)
    probabilities, same = rng.random(400), rng.random(400) < 0.2
    probabilities[:2] = 0, 1
    found = reliability(probabilities, same)
    weight = {True: 0.5 / same.sum(), False: 0.5 / (~same).sum()}
    ece = 0.0
    for low in range(15):
        inside = [
            n for n in range(400) if low <= 15 * probabilities[n] < low + 1 or (low == 14 and probabilities[n] == 1)
        ]
        ece += abs(sum(weight[bool(same[n])] * (probabilities[n] - same[n]) for n in inside))
    brier = sum(weight[bool(same[n])] * (probabilities[n] - same[n]) ** 2 for n in range(400))
    assert found.ece == pytest.approx(ece, abs=1e-12) and found.brier == pytest.approx(brier, abs=1e-12)
    assert balanced_weights(same)[same].sum() == pytest.approx(0.5)
    with pytest.raises(UsageError, match="0 pairs of one person"):
        reliability([0.5], [False])


def test_a_perfect_and_a_useless_probability() -> None:
    same = np.arange(100) < 30
    assert reliability(same.astype(float), same).ece == reliability(same.astype(float), same).brier == 0
    assert reliability(np.full(100, 0.5), same).ece == pytest.approx(0, abs=1e-12)
    assert reliability(np.full(100, 0.5), same).brier == pytest.approx(0.25)


def test_a_threshold_keeps_its_rate_and_is_the_lowest_that_does() -> None:
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=5000), 2)  # with ties
    for rate in (0.1, 0.01, 0.003):
        threshold = threshold_at(values, rate)
        assert threshold is not None and accept_rate(values, threshold) <= rate
        assert accept_rate(values, values[values < threshold].max()) > rate
    assert threshold_at(values, 0.001) is None, "five pairs beyond it say nothing"


def test_open_set_is_the_definition() -> None:
    rng = np.random.default_rng(0)
    known = rng.random(300) < 0.6
    distances = np.round(rng.random(300), 2)
    right = known & (rng.random(300) < 0.7)
    found = open_set(distances, right, known, (0.1, 0.03, 0.001))
    strangers = distances[~known]
    for rate, value in found.rates.items():
        best = None
        for threshold in sorted({*distances, -1.0}):
            if np.mean(strangers <= threshold) <= rate:
                best = np.mean((distances[known] <= threshold) & right[known])
        if rate == 0.001:
            assert value is None
        else:
            assert value == pytest.approx(best)
    pairs = [(a < b) + 0.5 * (a == b) for a in distances[known] for b in strangers]
    assert found.auroc == pytest.approx(np.mean(pairs)) == auroc(distances[known], strangers)
    with pytest.raises(UsageError, match="known and unknown"):
        open_set([0.1], [True], [True])
