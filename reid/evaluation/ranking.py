"""Queries and gallery of one test with their features, ready to be scored as a whole or in parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.metrics.ground_truth import Numbers, as_numbers
from reid.metrics.rerank import k_reciprocal
from reid.metrics.retrieval import evaluate, evaluate_distances
from reid.metrics.scores import Scores
from reid.protocols.splits import EvaluationSplit
from shared.schemas import Kind, ManifestRow

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Side:
    """features [N, F]; identities [N], masked where there is no person; cameras [N], masked where not labelled;
    junk bool [N]."""

    features: Features
    identities: Numbers
    cameras: Numbers
    junk: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Sequence[ManifestRow], features: Features) -> "Side":
        return cls(
            features,
            as_numbers([row.identity for row in rows]),
            as_numbers([row.camera for row in rows]),
            np.array([row.kind == Kind.JUNK for row in rows]),
        )

    @property
    def distractor(self) -> NDArray[np.bool_]:
        """bool [N]."""
        return np.ma.getmaskarray(self.identities) & ~self.junk

    def only(self, wanted: NDArray[Any]) -> "Side":
        """The rows of a bool [N] or an index array."""
        return Side(self.features[wanted], self.identities[wanted], self.cameras[wanted], self.junk[wanted])


@dataclass(frozen=True)
class Ranking:
    """One test. distances [Q, G]: re-ranked ones; None: Euclidean on the features."""

    query: Side
    gallery: Side
    distances: NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls, split: EvaluationSplit, features_of: Callable[[Sequence[ManifestRow]], Features], *, re_ranking: bool
    ) -> "Ranking":
        """Raises what `features_of` raises, and as reid.metrics.rerank.k_reciprocal."""
        query = Side.of(split.query, features_of(split.query))
        gallery = Side.of(split.gallery, features_of(split.gallery))
        return cls(query, gallery, k_reciprocal(query.features, gallery.features) if re_ranking else None)

    def scores(self, max_rank: int, ranked: int = 0, device: Any = None) -> Scores:
        """Scores under the Market-1501 rule, and every query's `ranked` nearest gallery images.

        device: that compares the features; None: NumPy, as always for re-ranked distances. Raises as
        reid.metrics.retrieval.evaluate.
        """
        query, gallery = self.query, self.gallery
        queries = query.identities, query.cameras
        candidates = gallery.identities, gallery.cameras
        options: dict[str, Any] = {
            "gallery_distractor": gallery.distractor,
            "gallery_junk": gallery.junk,
            "max_rank": max_rank,
            "ranked": ranked,
        }
        if self.distances is None:
            return evaluate(query.features, *queries, gallery.features, *candidates, **options, device=device)
        return evaluate_distances(self.distances, *queries, *candidates, **options)

    def only(self, queries: NDArray[Any], gallery: NDArray[Any]) -> "Ranking":
        """The test of some queries against a part of the gallery; bool [Q], bool [G]."""
        distances = None if self.distances is None else self.distances[np.ix_(queries, gallery)]
        return Ranking(self.query.only(queries), self.gallery.only(gallery), distances)

    def same_person(self, queries: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [len(queries), G]: the gallery image shows the query's identity."""
        return _equal(self.query.identities[queries], self.gallery.identities)

    def same_camera(self, queries: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [len(queries), G]: one camera took both; never where one of them is not labelled."""
        return _equal(self.query.cameras[queries], self.gallery.cameras)

    def distances_of(self, queries: NDArray[np.int64]) -> NDArray[np.float32]:
        """Distances [len(queries), G] in float32: the re-ranked ones, or Euclidean."""
        if self.distances is not None:
            chosen: NDArray[np.float32] = self.distances[queries]
            return chosen
        query, gallery = self.query.features[queries], self.gallery.features
        squares = np.square(query).sum(axis=1)[:, None] + np.square(gallery).sum(axis=1) - 2 * (query @ gallery.T)
        found: NDArray[np.float32] = np.sqrt(np.maximum(squares, 0))
        return found


def _equal(ones: Numbers, others: Numbers) -> NDArray[np.bool_]:
    """bool [N, M]: equal and both known."""
    known = ~np.ma.getmaskarray(ones)[:, None] & ~np.ma.getmaskarray(others)
    equal: NDArray[np.bool_] = (ones.data[:, None] == others.data) & known
    return equal
