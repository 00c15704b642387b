"""Re-ranking against its definition: sets of neighbours, a full table of weights, minima over maxima."""

from typing import Any

import numpy as np
import pytest
import torch

import reid.metrics.rerank
from reid.metrics.rerank import k_reciprocal
from reid.metrics.retrieval import evaluate, evaluate_distances
from shared.errors import DgreidError, UsageError


def slow(query: Any, gallery: Any, k1: int, k2: int, share: float) -> Any:
    """Zhong et al. 2017, Eq. 1 to 12, in float64 and with the whole table of all images against all."""
    features = np.concatenate([query, gallery]).astype(np.float64)
    total = len(features)
    original = np.square(features[:, None] - features[None]).sum(axis=2)
    original /= original.max(axis=1, keepdims=True)
    ranked = [sorted(range(total), key=lambda j, i=i: (j != i, original[i, j], j)) for i in range(total)]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in ranked[i][: k + 1] if i in ranked[j][: k + 1]}

    weights = np.zeros((total, total))
    for i in range(total):
        own = reciprocal(i, k1)
        expanded = set(own)
        for j in own:
            theirs = reciprocal(j, round(k1 / 2))
            if len(own & theirs) > 2 / 3 * len(theirs):
                expanded |= theirs
        near = sorted(expanded)
        weights[i, near] = np.exp(-original[i, near])
        weights[i] /= weights[i].sum()
    weights = np.stack([weights[ranked[i][:k2]].mean(axis=0) for i in range(total)])
    found = np.empty((len(query), len(gallery)))
    for q in range(len(query)):
        for g in range(len(gallery)):
            pair = weights[q], weights[len(query) + g]
            jaccard = 1 - np.minimum(*pair).sum() / np.maximum(*pair).sum()
            found[q, g] = (1 - share) * jaccard + share * original[q, len(query) + g]
    return found


def people(seed: int, queries: int, gallery: int, dimensions: int = 12, noise: float = 0.8) -> tuple[Any, Any, Any]:
    """Features of few people with noise: neighbourhoods overlap."""
    rng = np.random.default_rng(seed)
    identities = rng.integers(0, 9, queries + gallery)
    centres = rng.standard_normal((9, dimensions))
    features = (centres[identities] + noise * rng.standard_normal((len(identities), dimensions))).astype(np.float32)
    return features[:queries], features[queries:], identities


@pytest.mark.parametrize(
    ("k1", "k2", "share"),
    [(20, 6, 0.3), (5, 3, 0.3), (7, 1, 0.0), (1, 1, 0.5), (4, 9, 0.1), (200, 6, 0.3), (3, 2, 1.0)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_definition(k1: int, k2: int, share: float, seed: int) -> None:
    query, gallery, _ = people(seed, 11, 60)
    found = k_reciprocal(query, gallery, k1, k2, share)
    assert found.shape == (11, 60) and found.dtype == np.float32
    np.testing.assert_allclose(found, slow(query, gallery, k1, k2, share), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_neither_the_scale_nor_the_place_of_the_features_counts(scale: float) -> None:
    query, gallery, _ = people(2, 5, 40)
    expected = slow(query, gallery, 8, 3, 0.3)
    np.testing.assert_allclose(k_reciprocal(scale * query, scale * gallery, 8, 3), expected, atol=1e-5)
    np.testing.assert_allclose(k_reciprocal(query + 30, gallery + 30, 8, 3), expected, atol=1e-3)


def test_the_size_of_the_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery, _ = people(3, 30, 90)
    whole = k_reciprocal(query, gallery)
    monkeypatch.setattr(reid.metrics.rerank, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(reid.metrics.rerank, "PRODUCT_BYTES", 9000)
    np.testing.assert_allclose(k_reciprocal(query, gallery), whole, atol=1e-6)


def test_an_image_beside_its_copies_is_its_own_neighbour() -> None:
    query, gallery, _ = people(4, 4, 20)
    gallery[5:15] = query[0]
    np.testing.assert_allclose(k_reciprocal(query, gallery, 4, 2), slow(query, gallery, 4, 2, 0.3), atol=1e-5)


def test_one_query_and_one_gallery_image() -> None:
    np.testing.assert_allclose(k_reciprocal([[0.0]], [[1.0]]), slow(np.zeros((1, 1)), np.ones((1, 1)), 20, 6, 0.3))
    assert np.isfinite(k_reciprocal(np.ones((2, 3)), np.ones((4, 3)))).all()  # all alike


def test_torch_tensors_are_taken_and_the_features_left_alone() -> None:
    query, gallery, _ = people(5, 3, 20)
    before = gallery.copy()
    tensors = torch.as_tensor(query).requires_grad_(), torch.as_tensor(gallery)
    np.testing.assert_array_equal(k_reciprocal(*tensors, 5, 2), k_reciprocal(query, gallery, 5, 2))
    np.testing.assert_array_equal(gallery, before)


def test_it_helps_where_people_form_clusters() -> None:
    query, gallery, identities = people(6, 60, 240, noise=1.0)
    ids = identities[:60] + 1, identities[60:] + 1
    cameras = np.ones(60, int), np.full(240, 2)
    before = evaluate(query, ids[0], cameras[0], gallery, ids[1], cameras[1])
    after = evaluate_distances(k_reciprocal(query, gallery), ids[0], cameras[0], ids[1], cameras[1])
    assert after.mean_ap > before.mean_ap + 0.03


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (([[1.0]], [[1.0, 2.0]]), UsageError, "shapes do not fit"),
        ((np.zeros((0, 2)), np.zeros((3, 2))), UsageError, "shapes do not fit"),
        (([[1.0]], [[2.0]], 0), UsageError, "k1=0"),
        (([[1.0]], [[2.0]], 2, 0), UsageError, "k2=0"),
        (([[1.0]], [[2.0]], 2, 2, 1.5), UsageError, "lambda_value=1.5"),
        (([[np.nan]], [[2.0]]), DgreidError, "not finite"),
    ],
)
def test_what_cannot_be_re_ranked_is_told(arguments: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        k_reciprocal(*arguments)
