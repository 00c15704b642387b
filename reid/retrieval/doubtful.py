"""Labels that the model doubts: identities that are probably one person, images that are probably mislabelled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.retrieval.link import mean_similarity


@dataclass(frozen=True)
class SamePerson:
    """Two identities whose images are alike: similarity is the mean over all pairs of their images."""

    first: str
    second: str
    similarity: float
    images: tuple[int, int]


@dataclass(frozen=True)
class Mislabelled:
    """An image that is less like the other images of its identity than like those of another one; means."""

    row: int
    identity: str
    own: float
    nearer: str
    other: float


def probably_one(
    similarity: NDArray[np.floating], identities: Sequence[str], threshold: float, *, most: int = 1000
) -> list[SamePerson]:
    """Pairs of identities at or above a mean similarity, the most alike first. similarity [N, N], NaN: unknown."""
    names, groups = _groups(identities)
    means = mean_similarity(similarity, groups)
    first, second = np.triu_indices(len(names), 1)
    values = np.nan_to_num(means[first, second], nan=-1.0)
    chosen = np.flatnonzero(values >= threshold)
    order = chosen[np.argsort(-values[chosen], kind="stable")][:most]
    return [
        SamePerson(names[a], names[b], float(value), (len(groups[a]), len(groups[b])))
        for a, b, value in zip(first[order], second[order], values[order], strict=True)
    ]


def probably_mislabelled(
    similarity: NDArray[np.floating],
    identities: Sequence[str],
    threshold: float,
    *,
    margin: float = 0.1,
    most: int = 1000,
) -> list[Mislabelled]:
    """Images whose identity has others, which they are like less than `threshold`, and less by `margin` than like the
    images of another identity; the largest difference first."""
    names, groups = _groups(identities)
    place = {name: number for number, name in enumerate(names)}
    known = ~np.isnan(similarity)
    filled = np.where(known, similarity, 0.0).astype(np.float64)
    np.fill_diagonal(filled, 0)
    known = known & ~np.eye(len(filled), dtype=bool)
    chosen = np.zeros((len(names), len(filled)))
    for number, rows in enumerate(groups):
        chosen[number, rows] = 1
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (filled @ chosen.T) / (known @ chosen.T)  # [N, names]
    found = []
    for row, name in enumerate(identities):
        own = means[row, place[name]]
        others = means[row].copy()
        others[place[name]] = np.nan
        if np.isnan(own) or np.isnan(others).all():
            continue
        best = int(np.nanargmax(others))
        if own < threshold and others[best] >= own + margin:
            found.append(Mislabelled(row, name, float(own), names[best], float(others[best])))
    return sorted(found, key=lambda one: one.own - one.other)[:most]


def _groups(identities: Sequence[str]) -> tuple[list[str], list[NDArray[np.int64]]]:
    names, inverse = np.unique(np.asarray(identities, object).astype(str), return_inverse=True)
    return names.tolist(), [np.flatnonzero(inverse == number) for number in range(len(names))]
