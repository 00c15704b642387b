"""The paired test against full enumeration, and that it finds nothing where there is nothing."""

import itertools

import numpy as np
import pytest

from reid.metrics.paired import paired_difference


def exact(first: list[np.ndarray], second: list[np.ndarray], identities: list[np.ndarray]) -> float:
    people = sorted({int(one) for split in identities for one in split})

    def mean(swapped: dict[int, int]) -> float:
        splits = []
        for a, b, ids in zip(first, second, identities, strict=True):
            gaps = [swapped[int(i)] * (x - y) for x, y, i in zip(a, b, ids, strict=True) if not np.isnan(x)]
            splits.append(sum(gaps) / len(gaps))
        return sum(splits) / len(splits)

    seen = abs(mean(dict.fromkeys(people, 1)))
    all_signs = [dict(zip(people, signs, strict=True)) for signs in itertools.product((-1, 1), repeat=len(people))]
    return sum(abs(mean(signs)) >= seen - 1e-12 for signs in all_signs) / len(all_signs)


def test_it_equals_the_enumeration_of_all_swaps() -> None:
    rng = np.random.default_rng(0)
    identities = [np.array([1, 1, 2, 3, 4, 5, 6]), np.array([2, 3, 3, 7, 8])]
    first = [rng.random(7), rng.random(5)]
    second = [one + rng.normal(0.15, 0.3, len(one)) for one in first]
    first[0][2] = second[0][2] = np.nan
    found = paired_difference(first, second, identities, permutations=40_000)
    assert found.p_value == pytest.approx(exact(first, second, identities), abs=0.01)
    gaps = [np.nanmean(a - b) for a, b in zip(first, second, strict=True)]
    assert found.difference == pytest.approx(np.mean(gaps))
    assert found.low <= found.difference <= found.high
    assert found.identities == 8


def test_equal_models_differ_by_chance_alone() -> None:
    rng = np.random.default_rng(1)
    ids = np.repeat(np.arange(30), 4)
    values = []
    for _ in range(200):
        hard = rng.random(30)[ids]  # the queries of one person are alike
        gap = rng.normal(0, 0.2, 30)[ids]
        values.append(paired_difference([hard], [hard + gap], [ids], permutations=400).p_value)
    assert 0.02 < np.mean(np.array(values) < 0.05) < 0.09


def test_a_clear_difference_is_found() -> None:
    ids = np.arange(40)
    found = paired_difference([np.full(40, 0.6)], [np.full(40, 0.5)], [ids])
    assert found.p_value < 0.001 and found.low == pytest.approx(0.1) == found.high


def test_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="same queries"):
        paired_difference([np.array([1.0, np.nan])], [np.array([1.0, 1.0])], [np.array([1, 2])])
    with pytest.raises(ValueError, match="no query"):
        paired_difference([np.array([np.nan])], [np.array([np.nan])], [np.array([1])])
