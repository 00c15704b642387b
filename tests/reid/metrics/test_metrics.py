"""The metric against its definition: sort everything, walk down the list."""

import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.metrics import on_device
from reid.metrics.ground_truth import as_numbers
from reid.metrics.retrieval import Scores, evaluate, evaluate_distances
from reid.metrics.scores import spread
from shared.errors import DgreidError, UsageError


def slow(query: Any, gallery: Any, masks: Any = None) -> tuple[list[float], list[float], list[int]]:
    """Per valid query: AP, INP and the first correct rank, after Zheng et al. 2015, in pure Python float64.

    Sides are (features, identities, cameras or None of each image); masks: keywords of `evaluate`.
    """
    aps, inps, firsts = [], [], []
    none = [False] * len(gallery[0])
    distractor, junk = ((masks or {}).get(name, none) for name in ("gallery_distractor", "gallery_junk"))
    for feature, identity, camera in zip(*query, strict=True):
        listing = [
            (sum((float(a) - float(b)) ** 2 for a, b in zip(feature, other, strict=True)), place, right)
            for place, (other, other_identity, other_camera) in enumerate(zip(*gallery, strict=True))
            for right in [other_identity == identity and not distractor[place]]
            if not junk[place] and not (right and camera is not None and other_camera == camera)
        ]
        hits = [right for _, _, right in sorted(listing)]
        if not any(hits):
            continue
        ranks = [rank for rank, hit in enumerate(hits, start=1) if hit]
        aps.append(sum(sum(hits[:rank]) / rank for rank in ranks) / len(ranks))
        inps.append(len(ranks) / ranks[-1])
        firsts.append(ranks[0])
    return aps, inps, firsts


def assert_same(scores: Scores, query: Any, gallery: Any, max_rank: int, masks: Any = None) -> None:
    aps, inps, firsts = slow(query, gallery, masks)
    assert scores.num_valid_queries == len(aps)
    assert scores.mean_ap == pytest.approx(np.mean(aps), abs=1e-12)
    assert scores.mean_inp == pytest.approx(np.mean(inps), abs=1e-12)
    expected = [np.mean([first <= rank for first in firsts]) for rank in range(1, max_rank + 1)]
    np.testing.assert_allclose(scores.cmc, expected, atol=1e-12)
    np.testing.assert_allclose(scores.per_query_ap[~np.isnan(scores.per_query_ap)], aps, atol=1e-12)
    assert scores.per_query_ap.shape == (len(query[0]),)
    np.testing.assert_allclose(scores.per_query_inp[~np.isnan(scores.per_query_inp)], inps, atol=1e-12)
    assert scores.per_query_rank[scores.per_query_rank > 0].tolist() == firsts
    if max_rank >= 10:
        means = scores.per_query().mean(axis=0)
        np.testing.assert_allclose(means, list(scores.summary().values()), atol=1e-9)


def side(rng: np.random.Generator, count: int, dimensions: int, levels: int, people: int) -> tuple[Any, Any, Any]:
    """Few levels make many exact ties; identities from -2 and cameras from -1, some of them not labelled."""
    features = rng.integers(0, levels, (count, dimensions)).astype(np.float32)
    cameras = [None if camera == 3 else int(camera) for camera in rng.integers(-1, 4, count)]
    return features, rng.integers(-2, people - 1, count), cameras


def kinds(rng: np.random.Generator, count: int) -> dict[str, Any]:
    drawn = rng.integers(0, 6, count)
    return {"gallery_distractor": drawn == 0, "gallery_junk": drawn == 1}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 40)),
    dimensions=st.integers(1, 6),
    levels=st.integers(1, 4),
    people=st.integers(1, 4),
    max_rank=st.integers(1, 50),
    chunk=st.integers(1, 9),
)
def test_equals_the_definition_with_ties_junk_and_distractors(
    seed: int, sizes: tuple[int, int], dimensions: int, levels: int, people: int, max_rank: int, chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    query = side(rng, sizes[0], dimensions, levels, people)
    gallery = side(rng, sizes[1], dimensions, levels, people)
    masks = kinds(rng, sizes[1])
    if not slow(query, gallery, masks)[0]:
        with pytest.raises(DgreidError, match="has a correct match"):
            evaluate(*query, *gallery, **masks, max_rank=max_rank, chunk=chunk)
    else:
        assert_same(
            evaluate(*query, *gallery, **masks, max_rank=max_rank, chunk=chunk), query, gallery, max_rank, masks
        )
        table = np.square(query[0][:, None].astype(np.float64) - gallery[0][None]).sum(axis=2)
        by_distance = evaluate_distances(table, *query[1:], *gallery[1:], **masks, max_rank=max_rank)
        assert_same(by_distance, query, gallery, max_rank, masks)


@pytest.mark.parametrize("shift", [-10, -1, 0, 10**12])
def test_scores_do_not_depend_on_how_people_and_cameras_are_numbered(shift: int) -> None:
    rng = np.random.default_rng(4)
    features = rng.standard_normal((150, 6)).astype(np.float32)
    identities, cameras = rng.integers(1, 9, 150), rng.integers(1, 4, 150)
    masks = kinds(rng, 120)

    def scored(by: int) -> Scores:
        ids, cams = identities + by, cameras + by
        return evaluate(features[:30], ids[:30], cams[:30], features[30:], ids[30:], cams[30:], **masks)

    assert_same(
        scored(0),
        (features[:30], identities[:30], cameras[:30]),
        (features[30:], identities[30:], cameras[30:]),
        50,
        masks,
    )
    np.testing.assert_array_equal(scored(shift).per_query_ap, scored(0).per_query_ap)


def test_market_numbers_are_scored_by_the_published_rule_with_its_masks() -> None:
    """Identity 0 a distractor, -1 junk, as in the file names; a query of 0 finds nobody."""
    rng = np.random.default_rng(6)
    query = rng.standard_normal((25, 5)), rng.integers(0, 6, 25), rng.integers(1, 5, 25)
    gallery = rng.standard_normal((140, 5)), rng.integers(-1, 6, 140), rng.integers(1, 5, 140)
    ids = gallery[1]
    found = evaluate(*query, *gallery, gallery_distractor=ids == 0, gallery_junk=ids == -1)
    people = query[1] > 0
    kept = ids != -1
    asked, searched = [tuple(column[rows] for column in side) for side, rows in ((query, people), (gallery, kept))]
    strangers = np.where(searched[1] == 0, np.arange(1000, 1000 + kept.sum()), searched[1])  # each somebody else
    expected = evaluate(*asked, searched[0], strangers, searched[2])
    assert found.num_valid_queries == expected.num_valid_queries == people.sum()
    np.testing.assert_array_equal(found.per_query_ap[people], expected.per_query_ap)
    assert np.isnan(found.per_query_ap[~people]).all()


def test_what_is_no_person_may_come_without_an_identity() -> None:
    rng = np.random.default_rng(8)
    query, gallery, masks = side(rng, 6, 4, 3, 4), side(rng, 60, 4, 3, 4), kinds(rng, 60)
    nobody = masks["gallery_distractor"] | masks["gallery_junk"]
    expected = evaluate(*query, *gallery, **masks)
    for missing in (
        np.ma.MaskedArray(gallery[1], nobody),
        np.where(nobody, np.nan, gallery[1]),
        [None if no else int(one) for no, one in zip(nobody, gallery[1], strict=True)],
        np.where(nobody, query[1][0], gallery[1]),  # a number there is not read
    ):
        found = evaluate(*query, gallery[0], missing, gallery[2], **masks)
        np.testing.assert_array_equal(found.per_query_ap, expected.per_query_ap)


def test_one_value_may_stand_for_a_whole_mask() -> None:
    args = ([[0.0]], [-1], [1], [[0.0], [1.0]], [-1, 4], [2, 2])
    assert evaluate(*args, gallery_junk=False).mean_ap == 1
    assert evaluate(*args, gallery_junk=[False, False]).mean_ap == 1
    with pytest.raises(DgreidError, match="none of 1 queries"):
        evaluate(*args, gallery_junk=True)


def test_numbers_are_read_whole_or_refused() -> None:
    for given_ in ([3, None, -1], [3.0, np.nan, -1.0], np.ma.MaskedArray([3, 7, -1], [0, 1, 0])):
        assert as_numbers(given_).tolist() == [3, None, -1]
    assert as_numbers(torch.tensor([0, 5], dtype=torch.int16)).tolist() == [0, 5]
    assert as_numbers(np.array([2**63 - 1], np.uint64)).tolist() == [2**63 - 1]
    assert as_numbers([]).tolist() == []
    for refused in ([1.5], ["1"], [np.inf], [1e30], [2**63], np.array([2**63], np.uint64), [2**80], [None, "a"]):
        with pytest.raises(UsageError, match="cameras are not whole numbers"):
            as_numbers(refused, "cameras")


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6, 1e-30, 1e12])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_near_ties_are_settled_exactly(spread: float, offset: float, dtype: type) -> None:
    """Distances far below float32 resolution, and far from the origin, are still ordered as in exact arithmetic."""
    rng = np.random.default_rng(3)
    features = (offset * spread + spread * rng.standard_normal((90, 24)) * rng.choice([1, 1e-4], (90, 1))).astype(dtype)
    features[40:50] = features[30:40]  # exact copies
    identities, cameras = rng.integers(0, 6, 90), rng.integers(1, 4, 90)
    query = features[:20], identities[:20], cameras[:20]
    gallery = features[20:], identities[20:], cameras[20:]
    # the pure Python sum is taken in another order, so only the order of well separated distances is its business
    assert_same(evaluate(*query, *gallery, max_rank=10, chunk=7), query, gallery, 10)


def test_differences_below_the_error_of_long_dot_products_are_settled() -> None:
    """Two opposite clusters: after centring every product has one sign, where float32 sums are at their worst."""
    rng = np.random.default_rng(5)
    base = rng.uniform(0.5, 1, 2048)
    signs = np.where(np.arange(310) % 2, 1.0, -1.0)[:, None]
    features = (signs * base * (1 + 3e-6 * rng.standard_normal((310, 1)))).astype(np.float32)
    identities, cameras = rng.integers(1, 9, 310), np.arange(310)  # no camera twice
    query, gallery = features[:10].astype(np.float64), features[10:].astype(np.float64)
    expected = []
    for feature, identity in zip(query, identities, strict=False):
        order = np.argsort(np.square(gallery - feature).sum(axis=1), kind="stable")
        ranks = np.flatnonzero(identities[10:][order] == identity) + 1
        expected.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    found = evaluate(features[:10], identities[:10], cameras[:10], features[10:], identities[10:], cameras[10:])
    np.testing.assert_allclose(found.per_query_ap, expected, rtol=1e-12)


def test_equal_images_rank_in_gallery_order_wherever_they_lie() -> None:
    rng = np.random.default_rng(0)
    feature = rng.standard_normal(2048).astype(np.float32)
    for place in (0, 17, 256, 299):
        identities = np.full(300, 2)
        identities[place] = 1
        scores = evaluate(feature[None] + 1, [1], [1], np.tile(feature, (300, 1)), identities, np.full(300, 2))
        assert scores.mean_ap == pytest.approx(1 / (place + 1))


def test_scores_do_not_depend_on_the_chunk() -> None:
    rng = np.random.default_rng(1)
    features = rng.standard_normal((400, 64)).astype(np.float32)
    args = (features[:50], np.arange(50) % 9 + 1, np.ones(50, int), features[50:], np.arange(350) % 9, np.full(350, 2))
    first, second = evaluate(*args, chunk=50), evaluate(*args, chunk=3)
    np.testing.assert_array_equal(first.per_query_ap, second.per_query_ap)


def test_torch_tensors_and_half_precision_are_taken() -> None:
    rng = np.random.default_rng(2)
    sides = [(side(rng, count, 5, 3, 3)[0], rng.integers(0, 3, count), rng.integers(0, 3, count)) for count in (6, 30)]
    junk = torch.arange(30) % 5 == 0
    expected = evaluate(*sides[0], *sides[1], gallery_junk=junk.numpy())
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tensors = [torch.as_tensor(value) for one in sides for value in one]
        tensors[0], tensors[3] = tensors[0].to(dtype), tensors[3].to(dtype).requires_grad_()
        np.testing.assert_array_equal(evaluate(*tensors, gallery_junk=junk).per_query_ap, expected.per_query_ap)


def test_features_are_not_normalised() -> None:
    scores = evaluate([[1.0, 0.0]], [1], [1], [[10.0, 0.0], [0.0, 1.0]], [1, 2], [2, 2])
    assert scores.mean_ap == 0.5  # by angle the match would come first


def test_an_unlabelled_camera_is_never_the_same() -> None:
    gallery = [[0.0], [1.0]], [1, 1]
    for nobody in (None, [None, None], [np.nan, np.nan], np.ma.masked_all(2, int)):
        assert evaluate([[0.0]], [1], [0], *gallery, nobody).mean_inp == 1
        assert evaluate([[0.0]], [1], None, *gallery, nobody).mean_inp == 1
        assert evaluate([[0.0]], [1], None, *gallery, [0, 0]).mean_inp == 1
    for camera in (3, 0, -1):
        with pytest.raises(DgreidError, match="none of 1 queries"):
            evaluate([[0.0]], [1], [camera], *gallery, [camera, camera])
    assert evaluate([[0.0]], [1], [0], *gallery, [0, None]).per_query_rank.tolist() == [1]  # the second one, alone


def test_a_curve_longer_than_the_gallery_stays_flat_and_the_summary_is_in_percent() -> None:
    scores = evaluate([[0.0]], [1], [1], [[3.0], [1.0]], [1, 2], [2, 2], max_rank=4)
    assert scores.cmc.tolist() == [0, 1, 1, 1]
    assert scores.summary() == {"mean_ap": 50, "mean_inp": 50, "rank_1": 0, "rank_5": 100, "rank_10": 100}


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"query_features": [1.0]}, UsageError, "query shapes do not fit"),
        ({"gallery_ids": [1, 2]}, UsageError, "gallery shapes do not fit"),
        ({"gallery_features": np.zeros((0, 1)), "gallery_ids": [], "gallery_cameras": []}, UsageError, "do not fit"),
        ({"gallery_features": [[1.0, 2.0]]}, UsageError, "1 dimensions, gallery features 2"),
        ({"query_features": [[np.nan]]}, DgreidError, "1 query features are not finite"),
        ({"gallery_features": [[np.inf]]}, DgreidError, r"gallery features are not finite \(first: row 0\)"),
        ({"gallery_features": [[1e30]], "query_features": [[-1e30]]}, DgreidError, "too long for float32"),
        ({"gallery_distractor": [True]}, DgreidError, "none of 1 queries"),
        ({"gallery_junk": [True]}, DgreidError, "none of 1 queries"),
        ({"gallery_junk": [True], "gallery_distractor": True}, UsageError, "1 gallery images are distractors and junk"),
        ({"gallery_junk": [True, False]}, UsageError, "gallery shapes do not fit"),
        ({"gallery_junk": [1]}, UsageError, "masks are not boolean"),
        ({"gallery_ids": [-1]}, UsageError, "1 gallery images have identity -1, which is junk in Market-1501"),
        ({"gallery_ids": [None]}, UsageError, "1 gallery identities are missing"),
        ({"query_ids": [np.nan]}, UsageError, "1 query identities are missing"),
        ({"query_ids": [1.5]}, UsageError, "query identities are not whole numbers"),
        ({"query_ids": [2.0**53]}, UsageError, "query identities are not whole numbers"),
        ({"gallery_ids": np.array([2**24], np.float32)}, UsageError, "gallery identities are not whole numbers"),
        ({"gallery_cameras": ["c2"]}, UsageError, "gallery cameras are not whole numbers"),
        ({"gallery_cameras": [2, 3]}, UsageError, "gallery shapes do not fit"),
        ({"max_rank": 0}, UsageError, "max_rank=0"),
        ({"chunk": 0}, UsageError, "chunk=0"),
    ],
)
def test_what_cannot_be_scored_is_told(changes: dict[str, Any], error: type[Exception], told: str) -> None:
    given_: dict[str, Any] = {
        "query_features": [[1.0]],
        "query_ids": [1],
        "query_cameras": [1],
        "gallery_features": [[1.0]],
        "gallery_ids": [1],
        "gallery_cameras": [2],
    }
    assert evaluate(**given_).mean_ap == 1
    with pytest.raises(error, match=told):
        evaluate(**{**given_, **changes})


@pytest.mark.parametrize(
    ("distances", "error", "told"),
    [
        ([[1.0, 2.0]], UsageError, "shapes do not fit"),
        ([1.0], UsageError, "shapes do not fit"),
        ([[np.nan]], DgreidError, "query 0 are not finite"),
    ],
)
def test_distances_that_do_not_fit_are_told(distances: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        evaluate_distances(distances, [1], [1], [1], [2])
    with pytest.raises(DgreidError, match="none of 1 queries"):
        evaluate_distances([[1.0]], [1], [1], [1], [1])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 40)),
    dimensions=st.integers(1, 6),
    levels=st.integers(1, 4),
    ranked=st.integers(1, 50),
    chunk=st.integers(1, 9),
    offset=st.sampled_from([0.0, 4096.0]),
)
def test_ranked_galleries_equal_a_full_sort(
    seed: int, sizes: tuple[int, int], dimensions: int, levels: int, ranked: int, chunk: int, offset: float
) -> None:
    """Ties, junk and removed images included; the same from features and from exact distances."""
    rng = np.random.default_rng(seed)
    query, gallery = (side(rng, count, dimensions, levels, 4) for count in sizes)
    query, gallery = ((one[0] + np.float32(offset), *one[1:]) for one in (query, gallery))
    masks = kinds(rng, sizes[1])
    distances = np.square(query[0][:, None].astype(float) - gallery[0][None].astype(float)).sum(axis=2)
    try:
        found = evaluate(*query, *gallery, **masks, ranked=ranked, chunk=chunk)
    except DgreidError as err:
        assert "has a correct match" in str(err)
        return
    plain = evaluate(*query, *gallery, **masks, chunk=chunk)
    assert found.mean_ap == plain.mean_ap and np.array_equal(found.cmc, plain.cmc)
    from_table = evaluate_distances(distances, *query[1:], *gallery[1:], **masks, ranked=ranked)
    assert found.ranked.shape == (sizes[0], ranked) and plain.ranked.shape == (sizes[0], 0)
    for index, (identity, camera) in enumerate(zip(*query[1:], strict=True)):
        kept = [
            place
            for place, (other, other_camera) in enumerate(zip(*gallery[1:], strict=True))
            if not masks["gallery_junk"][place]
            and not (
                other == identity
                and not masks["gallery_distractor"][place]
                and camera is not None
                and other_camera == camera
            )
        ]
        expected = sorted(kept, key=lambda place, index=index: (distances[index, place], place))[:ranked]
        expected += [-1] * (ranked - len(expected))
        assert found.ranked[index].tolist() == expected
        assert from_table.ranked[index].tolist() == expected
        rank = found.per_query_rank[index]
        if 0 < rank <= ranked:
            first = found.ranked[index, rank - 1]
            assert gallery[1][first] == identity and not masks["gallery_distractor"][first]


def test_near_ties_in_the_ranked_gallery_are_settled_in_float64() -> None:
    """Differences that float32 products cannot see."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal(512) * 10
    gallery = centre + rng.standard_normal((300, 512)) * 1e-4
    query = centre[None] + rng.standard_normal((5, 512)) * 1e-4
    gallery[200:] += 3
    found = evaluate(query, [1] * 5, [0] * 5, gallery, [1] * 300, [1] * 300, ranked=20)
    exact = np.square(query[:, None] - gallery[None]).sum(axis=2)
    assert np.array_equal(found.ranked, np.argsort(exact, axis=1, kind="stable")[:, :20])


@pytest.mark.parametrize("values", [[4.0], [4.0, 10.0], [1.0, 2.0, 4.0, 8.0]])
def test_spread_is_mean_and_sample_deviation(values: list[float]) -> None:
    found = spread(values)
    assert found.mean == pytest.approx(statistics.fmean(values)) and found.count == len(values)
    if len(values) == 1:
        assert found.std is None and found.standard_error is None
    else:
        assert found.std == pytest.approx(statistics.stdev(values))
        assert found.standard_error == pytest.approx(statistics.stdev(values) / len(values) ** 0.5)


@pytest.mark.parametrize("seed", range(16))
def test_the_ranking_on_a_device_is_that_of_numpy(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "COMPARED", 50)
    rng = np.random.default_rng(seed)
    ranges = (3, 60), (5, 600), (2, 30), (1, 40)
    queries, gallery, people, dimensions = (int(rng.integers(low, high)) for low, high in ranges)
    centres = rng.standard_normal((people, dimensions))
    sides = []
    for count in (queries, gallery):
        identities = rng.integers(0, people, count)
        features = (centres[identities] + rng.standard_normal((count, dimensions))).astype(np.float32)
        if seed % 4 == 1:  # nearly all distances are the same to float32
            features = (1 + 1e-6 * features).astype(np.float64 if seed % 8 == 1 else np.float32)
        sides += [np.round(features) if seed % 3 == 0 else features, identities, rng.integers(0, 3, count)]
    if gallery > 40:
        sides[3][5:15] = sides[3][20:30]  # copies: the lower index comes first
    sides[4][-1], sides[5][-1], sides[1][0], sides[2][0] = 0, 1, 0, 2  # at least one query is valid
    junk = rng.random(gallery) < 0.1
    junk[-1] = False
    options = {"ranked": seed % 7, "gallery_junk": junk, "chunk": 16}
    expected, found = evaluate(*sides, **options), evaluate(*sides, **options, device="cpu")
    for name in ("cmc", "per_query_ap", "per_query_inp", "per_query_rank"):
        assert np.array_equal(getattr(expected, name), getattr(found, name), equal_nan=True), name
    for one, other in zip(expected.ranked, found.ranked, strict=True):
        assert np.array_equal(one, other)


def test_scores_on_a_device_do_not_depend_on_the_precision_that_products_may_have() -> None:
    rng = np.random.default_rng(0)
    people = rng.standard_normal((40, 512)).astype(np.float32)
    sides: list[Any] = []
    for count in (100, 2000):
        identities = rng.integers(0, 40, count)
        features = people[identities] + 3 * rng.standard_normal((count, 512)).astype(np.float32)
        sides += [features, identities, rng.integers(0, 5, count)]
    expected, before = evaluate(*sides, ranked=5), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")  # bfloat16, on processors that compute in it; TF32 on GPUs
        found = evaluate(*sides, ranked=5, device="cpu")
        assert torch.get_float32_matmul_precision() == "medium"
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # by torch's newer names, after which the older ones fail
        assert np.array_equal(expected.per_query_ap, evaluate(*sides, device="cpu").per_query_ap)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(expected.per_query_ap, found.per_query_ap)
    assert np.array_equal(expected.ranked, found.ranked)


def test_sums_of_rows_do_not_depend_on_how_many_there_are() -> None:
    rows = torch.randn(70, 77, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = on_device._sums(rows)
    assert torch.equal(together, torch.cat([on_device._sums(row[None]) for row in rows]))
    assert torch.allclose(together, rows.sum(dim=1), rtol=1e-12)


def test_a_device_refuses_features_that_are_too_long() -> None:
    rows = np.array([[0.0, 1.0], [3e38, 0.0]], np.float32)
    for device in (None, "cpu"):
        with pytest.raises(DgreidError, match="too long"):
            evaluate(rows[:1], [1], [0], rows, [1, 1], [1, 1], device=device)
