"""Tracklets become people: by average similarity, and never against time or cameras."""

import numpy as np
import pytest

from reid.retrieval.doubtful import probably_mislabelled, probably_one
from reid.retrieval.link import Tracklet, link, may_be_one, mean_similarity


def tracklet(
    camera: str, track: int, first: float | None = None, last: float | None = None, images: int = 1
) -> Tracklet:
    return Tracklet(camera, track, first, last, np.arange(images))


def slow_link(similarity: np.ndarray, allowed: np.ndarray, sizes: np.ndarray, threshold: float) -> set[frozenset[int]]:
    """Average linkage written out."""
    clusters = [frozenset([n]) for n in range(len(similarity))]
    while True:
        best = None
        for a in clusters:
            for b in clusters:
                if a == b or not all(allowed[i, j] for i in a for j in b):
                    continue
                weight = sum(sizes[i] * sizes[j] for i in a for j in b)
                value = sum(similarity[i, j] * sizes[i] * sizes[j] for i in a for j in b) / weight
                if value >= threshold and (best is None or value > best[0] + 1e-12):
                    best = (value, a, b)
        if best is None:
            return set(clusters)
        clusters = [one for one in clusters if one not in best[1:]] + [best[1] | best[2]]


@pytest.mark.parametrize("seed", range(6))
def test_linking_is_average_linkage_with_forbidden_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 14
    similarity = rng.uniform(-1, 1, (count, count))
    similarity = (similarity + similarity.T) / 2
    tracklets = [
        tracklet(f"c{rng.integers(3)}", n, start := float(rng.uniform(0, 50)), start + 8, int(rng.integers(1, 5)))
        for n in range(count)
    ]
    travel = {frozenset(("c0", "c1")): 5.0}
    ids = link(similarity, tracklets, 0.1, travel)
    allowed = np.array([[may_be_one(a, b, travel) for b in tracklets] for a in tracklets])
    expected = slow_link(similarity, allowed, np.array([len(one.rows) for one in tracklets]), 0.1)
    assert {frozenset(np.flatnonzero(ids == number).tolist()) for number in np.unique(ids)} == expected
    assert sorted(np.unique(ids)) == list(range(1, len(expected) + 1))


def test_time_and_cameras_forbid() -> None:
    early, late, overlap = tracklet("a", 1, 0, 10), tracklet("a", 2, 11, 20), tracklet("a", 3, 5, 15)
    assert may_be_one(early, late, {}) and not may_be_one(early, overlap, {})
    there = tracklet("b", 1, 12, 20)
    assert may_be_one(early, there, {}) and may_be_one(late, there, {})
    far = {frozenset("ab"): 5.0}
    assert not may_be_one(early, there, far) and not may_be_one(late, there, far)
    assert may_be_one(early, tracklet("b", 1, 15, 20), far)
    assert not may_be_one(tracklet("a", 1), tracklet("a", 2), {}) and may_be_one(tracklet("a", 1), tracklet("b", 2), {})
    assert link(np.ones((3, 3)), [early, late, overlap], 0.5).tolist() in ([1, 1, 2], [1, 2, 1])
    assert link(np.zeros((0, 0)), [], 0.5).tolist() == []


def test_means_leave_out_what_is_not_known() -> None:
    similarity = np.array([[1, 0.2, np.nan], [0.2, 1, 0.6], [np.nan, 0.6, 1]])
    means = mean_similarity(similarity, [np.array([0, 1]), np.array([2])])
    assert means[0, 1] == pytest.approx(0.6) and means[0, 0] == pytest.approx(0.6)


def test_doubtful_labels_are_found() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(6)
    who = np.repeat(np.arange(6), 5)
    features = centres[who] + 0.05 * rng.normal(size=(30, 6))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    names = [f"p{n}" for n in who]
    names[7] = "p4"  # an image of p1 labelled p4
    names[25:28] = ["q"] * 3  # three images of p5 under another name
    similarity = features @ features.T
    (found,) = probably_one(similarity, names, 0.6)
    assert {found.first, found.second} == {"p5", "q"} and found.images in ((2, 3), (3, 2))
    (image,) = probably_mislabelled(similarity, names, 0.6)
    assert (image.row, image.identity, image.nearer) == (7, "p4", "p1") and image.other > 0.9 > 0.3 > image.own
    assert probably_one(similarity, names, 0.999) == []
