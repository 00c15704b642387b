"""What the page shows of a trained model. The data are handed in: this package knows no training run and its files."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RankedTarget:
    """The queries of one model on one data set, of all its splits: Q rows; and its P images.

    name: of the model, e.g. "demo, trained". The ranking is that of the scores; distances that are shown beside it are
    Euclidean between L2-normalised features, also where the ranking was refined by re-ranking.
    """

    name: str
    dataset: str
    image_ids: list[str]  # [P]
    identities: NDArray[np.int64]  # [P]; -1: nobody's
    cameras: NDArray[np.int64]  # [P]; -1: not known
    gallery: NDArray[np.bool_]  # [S, P]: which images are in the gallery of a split
    split: NDArray[np.int32]  # [Q]
    query: NDArray[np.int32]  # [Q], index into the images
    average_precision: NDArray[np.float64]  # [Q] in 0..1; NaN: no match in the gallery
    first_rank: NDArray[np.int64]  # [Q], 1-based; 0 likewise
    ranked: NDArray[np.int32]  # [Q, L], indices into the images, nearest first; -1: the gallery is shorter
    correct: NDArray[np.bool_]  # [Q, L]
    features: NDArray[np.float32] | None = None  # [P, F], L2-normalised; None: not stored
    parts: tuple[str, ...] = ()  # features are 1 + len(parts) blocks of equal length, the whole image first
    masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)  # image_id -> [R, h, w]


@dataclass(frozen=True)
class Neighbour:
    """One image of a ranked gallery. rank: 1-based; None: left out by the same-camera rule."""

    image_id: str
    rank: int | None
    correct: bool
    distance: float
    by_part: dict[str, float]  # distance of each block of the feature, normalised by itself


@dataclass(frozen=True)
class FeatureMap:
    """Gallery features of one data set in two dimensions."""

    dataset: str
    image_ids: list[str]
    places: NDArray[np.float32]  # [N, 2]
    groups: Mapping[str, list[str]]  # what points are coloured by -> value of every image


def neighbours(target: RankedTarget, row: int, length: int) -> list[Neighbour]:
    """The first `length` images of a query's ranked gallery, and the images of the query's identity and camera, which
    the rule of the scores leaves out, before the first one that is farther away."""
    assert target.features is not None
    query, features, split = int(target.query[row]), target.features, int(target.split[row])
    same = (target.identities == target.identities[query]) & (target.identities >= 0)
    own_camera = (target.cameras == target.cameras[query]) & (target.cameras[query] >= 0)
    left_out = np.flatnonzero(target.gallery[split] & same & own_camera)
    left_out = left_out[left_out != query]
    ranked = [(int(image), bool(right)) for image, right in zip(target.ranked[row], target.correct[row], strict=True)]
    ranked = [(image, right) for image, right in ranked if image >= 0][:length]
    shown = np.array([*(image for image, _ in ranked), *left_out], np.int64)
    distance = dict(zip(shown.tolist(), np.linalg.norm(features[shown] - features[query], axis=1), strict=True))
    blocks = _by_part(target, query, shown)

    def one(image: int, rank: int | None, correct: bool) -> Neighbour:
        by_part = {part: values[image] for part, values in blocks.items()}
        return Neighbour(target.image_ids[image], rank, correct, float(distance[image]), by_part)

    found, waiting = [], sorted(left_out.tolist(), key=distance.__getitem__)
    for rank, (image, right) in enumerate(ranked, start=1):
        while waiting and distance[waiting[0]] <= distance[image]:
            found.append(one(waiting.pop(0), None, True))
        found.append(one(image, rank, right))
    return found


def _by_part(target: RankedTarget, query: int, images: NDArray[np.int64]) -> dict[str, dict[int, float]]:
    """Block of the feature -> image -> distance to the query."""
    names = ("whole image", *target.parts)
    assert target.features is not None
    length, rest = divmod(target.features.shape[1], len(names))
    if rest or not target.parts:
        return {}
    found = {}
    for place, name in enumerate(names):
        block = target.features[np.append(images, query), place * length : (place + 1) * length]
        block = block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        distances = np.linalg.norm(block[:-1] - block[-1], axis=1)
        found[name] = dict(zip(images.tolist(), map(float, distances), strict=True))
    return found
