"""Intervals, camera pairs, parts and histograms against their definitions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reid.evaluation.details import (
    _nearest_of,
    ap_histogram,
    bootstrap_intervals,
    camera_pairs,
    distance_histogram,
    open_set_scores,
    part_scores,
    score_details,
)
from reid.evaluation.ranking import Ranking, Side
from reid.metrics.ground_truth import as_numbers
from reid.metrics.rerank import k_reciprocal


def ranking(seed: int = 0, *, queries: int = 40, gallery: int = 160, people: int = 8, dimensions: int = 8) -> Ranking:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((people + 1, dimensions))

    def side(count: int, lowest: int) -> Side:
        """People 1 and up, 0 a distractor, -1 junk; cameras 0 to 2."""
        drawn = rng.integers(lowest, people + 1, count)
        features = centres[drawn] + rng.standard_normal((count, dimensions))
        identities = np.ma.MaskedArray(np.maximum(drawn, 1), drawn < 1)  # what lies below the mask means nothing
        return Side(features.astype(np.float32), identities, as_numbers(rng.integers(0, 3, count)), drawn == -1)

    return Ranking(side(queries, 1), side(gallery, -1))


def test_intervals_are_quantiles_of_scores_over_drawn_identities() -> None:
    """Against a loop that draws people one by one and gathers their queries."""
    one = ranking()
    scores, identities = one.scores(50), one.query.identities
    found = bootstrap_intervals([scores], [identities], samples=4000, seed=1)
    rng = np.random.default_rng(7)
    people = np.unique(identities)
    draws = []
    for _ in range(4000):
        drawn = np.concatenate([np.flatnonzero(identities == who) for who in rng.choice(people, len(people))])
        draws.append((100 * scores.per_query_ap[drawn].mean(), 100 * (scores.per_query_rank[drawn] <= 1).mean()))
    expected = np.quantile(draws, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(found["mean_ap"], expected[:, 0], atol=0.6)
    np.testing.assert_allclose(found["rank_1"], expected[:, 1], atol=1.5)
    for name, value in scores.summary().items():
        assert found[name][0] <= value <= found[name][1]


def test_intervals_follow_the_seed_and_narrow_with_more_people() -> None:
    one, many = ranking(people=6), ranking(people=60, queries=600, gallery=900)
    drawn = bootstrap_intervals([one.scores(50)], [one.query.identities], seed=3)
    assert drawn == bootstrap_intervals([one.scores(50)], [one.query.identities], seed=3)
    assert drawn != bootstrap_intervals([one.scores(50)], [one.query.identities], seed=4)
    wide = np.ptp(drawn["rank_1"])
    assert np.ptp(bootstrap_intervals([many.scores(50)], [many.query.identities])["rank_1"]) < wide / 1.5


def test_one_identity_has_no_spread() -> None:
    alone = Side(np.zeros((2, 1), np.float32), as_numbers([1, 1]), as_numbers([1, 1]), np.zeros(2, bool))
    one = Ranking(alone, ranking(dimensions=1).gallery)
    low, high = bootstrap_intervals([one.scores(50)], [one.query.identities])["mean_ap"]
    assert low == high == pytest.approx(100 * one.scores(50).mean_ap)


@pytest.mark.parametrize("re_ranked", [False, True])
def test_camera_pairs_are_the_scores_of_two_cameras_alone(re_ranked: bool) -> None:
    one = ranking(2)
    if re_ranked:
        one = Ranking(one.query, one.gallery, k_reciprocal(one.query.features, one.gallery.features))
    pairs = {(pair["query_camera"], pair["gallery_camera"]): pair for pair in camera_pairs([one])}
    assert set(pairs) == {(a, b) for a in range(3) for b in range(3) if a != b}
    asked, searched = np.flatnonzero(one.query.cameras == 2), np.flatnonzero(one.gallery.cameras == 0)
    distances = one.distances if re_ranked else None
    if distances is None:
        distances = np.square(one.query.features[:, None] - one.gallery.features[None]).sum(axis=2)
    precisions, firsts = [], []
    for query in asked:
        ranked = sorted(searched[~one.gallery.junk[searched]], key=lambda g, q=query: (distances[q, g], g))
        hits = np.flatnonzero((one.gallery.identities[ranked] == one.query.identities[query]).filled(False)) + 1
        if len(hits):
            precisions.append(np.mean(np.arange(1, len(hits) + 1) / hits))
            firsts.append(hits[0] == 1)
    assert pairs[2, 0]["queries"] == len(precisions)
    assert pairs[2, 0]["mean_ap"] == pytest.approx(100 * np.mean(precisions))
    assert pairs[2, 0]["rank_1"] == pytest.approx(100 * np.mean(firsts))


def test_unlabelled_cameras_and_pairs_without_a_match_have_no_line() -> None:
    one = ranking(3)
    nobody = replace(one.gallery, identities=as_numbers([None] * 160))
    assert camera_pairs([Ranking(one.query, nobody)]) == []
    unknown = replace(one.query, cameras=as_numbers([None] * 40))
    assert camera_pairs([Ranking(unknown, one.gallery)]) == []


def test_parts_are_scored_by_their_own_block_normalised() -> None:
    one = ranking(4, dimensions=8)
    found = part_scores([one], ("head", "legs", "arms"))
    assert list(found) == ["whole image", "head", "legs", "arms"]

    def block(side: Side) -> Side:
        part = side.features[:, 4:6]
        return replace(side, features=part / np.linalg.norm(part, axis=1, keepdims=True))

    expected = Ranking(block(one.query), block(one.gallery)).scores(10).summary()
    assert found["legs"] == pytest.approx({name: expected[name] for name in ("mean_ap", "rank_1")})
    assert part_scores([one], ()) == {} and part_scores([one], ("head", "legs")) == {}


def test_histograms_count_every_query_and_pair_once() -> None:
    one = ranking(5, queries=30, gallery=70)
    cameras = np.ma.MaskedArray(one.gallery.cameras, np.arange(70) % 3 == 0)  # a third is not labelled
    one = Ranking(one.query, replace(one.gallery, cameras=cameras))
    asked, searched = one.query.cameras.tolist(), cameras.tolist()
    scores = one.scores(50)
    counts = ap_histogram([scores])
    assert sum(counts["queries"]) == scores.num_valid_queries
    found = distance_histogram([one], [scores])
    same, other = [], []
    for q in np.flatnonzero(scores.per_query_rank > 0):
        for g in range(70):
            distance = float(np.linalg.norm(one.query.features[q] - one.gallery.features[g]))
            if one.gallery.identities[g] == one.query.identities[q]:  # a masked one is not
                same += [distance] if searched[g] != asked[q] else []
            elif not one.gallery.junk[g]:
                other.append(distance)
    for name, values in (("same", same), ("other", other)):
        expected, _ = np.histogram(values, bins=found["edges"])
        np.testing.assert_allclose(found[name], expected / len(values), atol=1.5 / len(values))
        assert sum(found[name]) == pytest.approx(1)


def test_re_ranked_distances_have_no_part_scores() -> None:
    one = ranking(6)
    table = k_reciprocal(one.query.features, one.gallery.features)
    re_ranked = Ranking(one.query, one.gallery, table)
    details: dict[str, Any] = score_details([re_ranked], [re_ranked.scores(50)], ("head",), seed=0)
    assert details["parts"] == {} and details["camera_pairs"]
    assert details["distance_histogram"]["edges"][-1] <= 1


def halves(count: int, seed: int = 8) -> list[Ranking]:
    """Random halves of the people of one set, with their own part of the gallery, as the splits of VIPeR are."""
    whole, rng, splits = ranking(seed, queries=80, gallery=240, people=12), np.random.default_rng(seed), []
    for _ in range(count):
        chosen = rng.choice(np.arange(1, 13), 6, replace=False)
        gallery = np.isin(whole.gallery.identities.data, chosen) | np.ma.getmaskarray(whole.gallery.identities)
        splits.append(whole.only(np.isin(whole.query.identities.data, chosen), gallery))
    return splits


def test_intervals_of_several_splits_are_of_their_mean_with_people_drawn_once_for_all() -> None:
    """Against a loop that draws people one by one and scores every split on those it has."""
    splits = halves(5)
    scores, identities = [one.scores(50) for one in splits], [one.query.identities.data for one in splits]
    found = bootstrap_intervals(scores, identities, samples=3000, seed=1)
    rng, people, draws = np.random.default_rng(3), np.unique(np.concatenate(identities)), []
    for _ in range(3000):
        chosen, values = rng.choice(people, len(people)), []
        for one, own in zip(scores, identities, strict=True):
            drawn = [query for who in chosen for query in np.flatnonzero((own == who) & (one.per_query_rank > 0))]
            if drawn:
                values.append((100 * np.mean(one.per_query_ap[drawn]), 100 * np.mean(one.per_query_rank[drawn] <= 5)))
        draws.append(np.mean(values, axis=0))
    expected = np.quantile(draws, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(found["mean_ap"], expected[:, 0], atol=1)
    np.testing.assert_allclose(found["rank_5"], expected[:, 1], atol=2)
    mean = np.mean([one.summary()["mean_ap"] for one in scores])
    assert found["mean_ap"][0] < mean < found["mean_ap"][1]


def test_the_same_split_twice_is_no_more_certain_than_once() -> None:
    one = ranking(9)
    scores, identities = one.scores(50), one.query.identities
    once, often = bootstrap_intervals([scores], [identities]), bootstrap_intervals([scores] * 4, [identities] * 4)
    for name, ends in once.items():
        assert often[name] == pytest.approx(ends)


def test_breakdowns_of_several_splits_are_means_over_all_of_them() -> None:
    splits = halves(4)
    scores = [one.scores(50) for one in splits]
    together: dict[str, Any] = score_details(splits, scores, ("head", "legs", "arms"), seed=0)
    alone = [
        score_details([one], [own], ("head", "legs", "arms"), seed=0) for one, own in zip(splits, scores, strict=True)
    ]
    assert together["queries"] == sum(one["queries"] for one in alone) == sum(together["ap_histogram"]["queries"])
    for key in ("mean_ap", "rank_1"):
        legs = [one["parts"]["legs"][key] for one in alone]
        assert together["parts"]["legs"][key] == pytest.approx(np.mean(legs))
    for pair in together["camera_pairs"]:
        names = ("query_camera", "gallery_camera")
        own = [p for one in alone for p in one["camera_pairs"] if all(p[name] == pair[name] for name in names)]
        assert pair["mean_ap"] == pytest.approx(np.mean([p["mean_ap"] for p in own]))
        assert pair["queries"] == sum(p["queries"] for p in own)


def test_two_cameras_average_to_the_total() -> None:
    one = ranking(10)
    sides = [
        replace(side, cameras=as_numbers(np.full(len(side.features), camera)))
        for side, camera in ((one.query, 1), (one.gallery, 2))
    ]
    two = Ranking(*sides)
    (pair,) = camera_pairs([two, two])
    total = two.scores(50).summary()
    assert (pair["mean_ap"], pair["rank_1"]) == pytest.approx((total["mean_ap"], total["rank_1"]))


def test_open_set_takes_half_of_the_people_out_of_the_gallery() -> None:
    """Against the definition, query by query; and a model that knows everybody gets full marks."""
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(20), 2)
    centres = rng.normal(size=(20, 8)).astype(np.float32)
    sides = []
    for camera, noise in ((1, 0.0), (2, 0.01)):
        features = centres[people] + noise * rng.normal(size=(40, 8)).astype(np.float32)
        sides.append(Side(features, as_numbers(people), as_numbers(np.full(40, camera)), np.zeros(40, bool)))
    found = open_set_scores([Ranking(*sides)], seed=0)
    assert found["auroc"] == 100 and found["rates"] == {"10": 100, "1": None}
    assert found["queries"] == [100, 100]  # five draws of 20 and 20
    sides[1] = Side(
        rng.normal(size=(40, 8)).astype(np.float32), *(sides[1].identities, sides[1].cameras, sides[1].junk)
    )
    ranking, kept = Ranking(*sides), np.arange(0, 20, 2)
    ((nearest, right, known),) = _nearest_of(ranking, np.arange(20), [kept])
    for query in range(40):
        left = [n for n in range(40) if people[n] in kept]
        distance = [float(np.linalg.norm(sides[0].features[query] - sides[1].features[n])) for n in left]
        best = left[int(np.argmin(distance))]
        assert nearest[query] == pytest.approx(min(distance), rel=1e-4)
        assert right[query] == (people[best] == people[query]) and known[query] == (people[query] in kept)
    assert open_set_scores([Ranking(sides[0].only(people == 1), sides[1].only(people == 1))], seed=0) == {}
