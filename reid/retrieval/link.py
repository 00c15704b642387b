"""Tracklets of several cameras -> people: agglomerative clustering that never joins what cannot be one person.

A tracklet is what a tracker calls one person in one camera. Two clusters are as alike as their images are on average
(average linkage); the most alike two are joined until none reach the threshold. Never joined: tracklets of one camera
that overlap in time, and tracklets of two cameras that a person cannot have passed between in the time.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import UsageError

MAX_TRACKLETS = 5000


@dataclass(frozen=True)
class Tracklet:
    """camera and track: as the tracker calls them. first_s, last_s: when; None: not known. rows: its images."""

    camera: str
    track: int
    first_s: float | None
    last_s: float | None
    rows: NDArray[np.int64]


def may_be_one(first: Tracklet, second: Tracklet, travel_s: Mapping[frozenset[str], float]) -> bool:
    """travel_s: {camera, camera} -> seconds that the way between them takes at least; not given: they may overlap."""
    if None in (first.first_s, second.first_s, first.last_s, second.last_s):
        return first.camera != second.camera  # of one camera without times: nothing says that they do not overlap
    gap = max(first.first_s - second.last_s, second.first_s - first.last_s)  # type: ignore[operator]
    if first.camera == second.camera:
        return bool(gap > 0)
    return bool(gap >= travel_s.get(frozenset((first.camera, second.camera)), -np.inf))


def link(
    similarity: NDArray[np.floating],
    tracklets: list[Tracklet],
    threshold: float,
    travel_s: Mapping[frozenset[str], float] | None = None,
) -> NDArray[np.int64]:
    """Global ids [T] from 1, in the order of the tracklets.

    Args:
        similarity: [T, T] of the tracklets, the mean over their images; NaN is never alike.
        threshold: least mean similarity of two clusters that are joined.
    Raises:
        UsageError: more than MAX_TRACKLETS.
    """
    count = len(tracklets)
    if count > MAX_TRACKLETS:
        raise UsageError(f"{count} tracklets", fix=f"link at most {MAX_TRACKLETS} at a time, e.g. an hour")
    allowed = np.array([[may_be_one(a, b, travel_s or {}) for b in tracklets] for a in tracklets]).reshape(count, count)
    sizes = np.array([len(one.rows) for one in tracklets], np.float64)
    sums = np.nan_to_num(np.asarray(similarity, np.float64), nan=-1.0) * np.outer(sizes, sizes)
    members = {n: [n] for n in range(count)}
    version = [0] * count

    def pairs(one: int) -> list[tuple[float, int, int, int, int]]:
        found = []
        for other in members:
            if other != one and allowed[one, other]:
                value = sums[one, other] / (sizes[one] * sizes[other])
                if value >= threshold:
                    low, high = min(one, other), max(one, other)
                    found.append((-value, low, high, version[low], version[high]))
        return found

    heap = [pair for one in range(count) for pair in pairs(one) if pair[1] == one]
    heapq.heapify(heap)
    while heap:
        _, low, high, low_version, high_version = heapq.heappop(heap)
        if low not in members or high not in members or (version[low], version[high]) != (low_version, high_version):
            continue
        members[low] += members.pop(high)
        version[low] += 1
        sums[low] += sums[high]
        sums[:, low] += sums[:, high]
        sizes[low] += sizes[high]
        allowed[low] &= allowed[high]
        allowed[:, low] = allowed[low]
        for pair in pairs(low):
            heapq.heappush(heap, pair)
    ids = np.zeros(count, np.int64)
    for number, (_, group) in enumerate(sorted(members.items()), 1):
        ids[group] = number
    return ids


def mean_similarity(similarity: NDArray[np.floating], groups: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """[G, G]: the mean over all pairs of images of two groups; similarity [N, N], NaN left out."""
    known = ~np.isnan(similarity)
    filled = np.where(known, similarity, 0.0)
    chosen = np.zeros((len(groups), len(similarity)))
    for number, rows in enumerate(groups):
        chosen[number, rows] = 1
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = (chosen @ filled @ chosen.T) / (chosen @ known @ chosen.T)
    return found
