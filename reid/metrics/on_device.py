"""Ranking on a GPU: what reid.metrics.retrieval computes per query, for a block of queries at once.

The distances of a block are sorted; the images that are too near to a match, or to the last place asked for, to be told
from it in float32 stand side by side there, and are compared in float64. Scores and lists are those of the CPU.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.metrics.scores import RankedQuery

PAIR_BYTES = 256 * 2**20  # of features that are compared in float64 at a time


class DeviceComparison:
    """Ranks and nearest images of blocks of queries.

    Args:
        features: gallery [G, D], as given.
        centred: the same as float32 around an origin.
        offsets: float32 [G], squared lengths of the centred features; inf for what is never found.
        scale: largest and smallest squared length of the centred features that can be found.
        device: of all the work; float64 is needed there.
    """

    def __init__(
        self,
        features: NDArray[Any],
        centred: NDArray[np.float32],
        offsets: NDArray[np.float32],
        scale: tuple[float, float],
        unit_roundoff: float,
        smallest: float,
        device: torch.device,
    ) -> None:
        self._features = torch.from_numpy(np.ascontiguousarray(features)).to(device)
        self._centred, self._offsets = torch.from_numpy(centred).to(device), torch.from_numpy(offsets).to(device)
        self._largest, self._smallest = scale
        self._roundoff, self._tiny, self._device = unit_roundoff, smallest, device

    def block(
        self,
        indices: NDArray[np.int64],
        queries: NDArray[Any],
        moved: NDArray[np.float32],
        lengths: NDArray[np.float64],
        removed: list[NDArray[np.int64]],
        matches: list[NDArray[np.int64]],
        ranked: int,
    ) -> Iterator[RankedQuery]:
        """What the queries of a block find.

        Args:
            indices: of the queries.
            queries: their features [B, D], as given.
            moved: their centred features times -2.
            lengths: of their centred features.
            removed: gallery indices removed for each of them.
            matches: gallery indices that are right for each of them; may be none.
            ranked: how many nearest images to return.
        """
        device = self._device
        distances = torch.from_numpy(moved).to(device) @ self._centred.T
        distances += self._offsets  # squared distances less the query's own square
        row, column = _pairs(removed, device)
        distances[row, column] = torch.inf
        ordered, order = distances.sort(dim=1)
        asked, length = torch.from_numpy(queries).to(device), torch.from_numpy(lengths).to(device)
        ranks = self._ranks(distances, ordered, order, asked, length, matches)
        nearest = [np.empty(0, np.int64)] * len(indices)
        if ranked:
            nearest = self._nearest(ordered, order, asked, length, ranked)
        for index, found, near in zip(indices, ranks, nearest, strict=True):
            yield RankedQuery(int(index), found, near)

    def _ranks(
        self,
        distances: Tensor,
        ordered: Tensor,
        order: Tensor,
        asked: Tensor,
        length: Tensor,
        matches: list[NDArray[np.int64]],
    ) -> list[NDArray[np.int64]]:
        """Ascending ranks of each query's matches."""
        counts = [len(found) for found in matches]
        if not sum(counts):
            return [np.empty(0, np.int64)] * len(matches)
        row, column = _pairs(matches, self._device)
        values = distances[row, column].double()
        low, high = (
            torch.full((len(matches),), fill, dtype=torch.float64, device=self._device).scatter_reduce(
                0, row, values, reduce
            )
            for fill, reduce in ((torch.inf, "amin"), (-torch.inf, "amax"))
        )
        margin = self._margin(length, low, high)[row]
        lows, highs = _outwards(values - margin, values + margin)
        nearer, beyond = _places(ordered, row, lows, right=False), _places(ordered, row, highs, right=True)
        unclear = torch.nonzero(beyond > nearer + 1)[:, 0]
        if len(unclear):
            first, width = nearer[unclear], (beyond - nearer)[unclear]
            which, place = _stretches(width)
            query = row[unclear][which]
            rival = order[query, first[which] + place]
            theirs = self._exact(asked, query, rival)
            own_column = column[unclear]
            own = self._exact(asked, row[unclear], own_column)[which]
            before = (theirs < own) | ((theirs == own) & (rival < own_column[which]))
            nearer.index_add_(0, unclear[which], before.long())
        found = np.split((nearer + 1).cpu().numpy(), np.cumsum(counts)[:-1])
        return [np.sort(one) for one in found]

    def _nearest(
        self, ordered: Tensor, order: Tensor, asked: Tensor, length: Tensor, count: int
    ) -> list[NDArray[np.int64]]:
        """Indices of each query's `count` nearest images that are not removed, in order; fewer where fewer are left."""
        last_place = min(count, ordered.shape[1]) - 1
        last = ordered[:, last_place].double()
        bound = last + self._margin(length, ordered[:, 0].double(), last)
        _, high = _outwards(bound, bound)
        high = torch.where(last.isfinite(), high, torch.full_like(high, torch.finfo(torch.float32).max))
        rows = torch.arange(len(ordered), device=self._device)
        width = _places(ordered, rows, high, right=True)
        query, place = _stretches(width)
        found = order[query, place]
        exact = self._exact(asked, query, found)
        by_index = found.argsort(stable=True)
        by_distance = by_index[exact[by_index].argsort(stable=True)]
        final = by_distance[query[by_distance].argsort(stable=True)]
        lists = np.split(found[final].cpu().numpy(), np.cumsum(width.cpu().numpy())[:-1])
        return [one[:count] for one in lists]

    def _exact(self, asked: Tensor, query: Tensor, rival: Tensor) -> Tensor:
        """Squared distances in float64 of pairs, each summed in the same order, so that equal rows give equal ones."""
        exact = torch.empty(len(rival), dtype=torch.float64, device=self._device)
        step = max(1, PAIR_BYTES // (8 * self._features.shape[1]))
        for start in range(0, len(rival), step):
            pairs = slice(start, start + step)
            difference = self._features[rival[pairs]].double() - asked[query[pairs]].double()
            exact[pairs] = difference.square_().sum(dim=1)
        return exact

    def _margin(self, length: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
        """As of reid.metrics.retrieval; all float64 [B]."""
        dimensions = self._features.shape[1]
        bound = length * self._largest**0.5
        product = torch.maximum(self._largest - lowest, highest - self._smallest) / 2
        of_dot = dimensions**0.5 * torch.minimum(product, bound) + 8 * bound
        margin: Tensor = 4 * self._roundoff * (of_dot + self._largest + 2 * bound) + self._tiny * dimensions
        return margin


def _pairs(lists: list[NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(row, column) of every entry of every list."""
    rows = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    columns = np.concatenate([*lists, np.empty(0, np.int64)])
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)


def _stretches(widths: Tensor) -> tuple[Tensor, Tensor]:
    """For stretches of these lengths laid end to end: which one each place is in, and the how manieth of it, from 0."""
    which = torch.repeat_interleave(torch.arange(len(widths), device=widths.device), widths)
    starts = widths.cumsum(0) - widths
    return which, torch.arange(len(which), device=widths.device) - starts[which]


def _outwards(lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
    """float64 bounds as float32, rounded outwards."""
    low, high = lows.float(), highs.float()
    below, above = torch.full_like(low, -torch.inf), torch.full_like(high, torch.inf)
    return torch.nextafter(low, below), torch.nextafter(high, above)


def _places(ordered: Tensor, row: Tensor, values: Tensor, *, right: bool) -> Tensor:
    """Where values [n] belong in the sorted rows [B, G] that they are of: how many entries are below (or not above)."""
    count = torch.bincount(row, minlength=len(ordered))
    most = int(count.max())
    table = values.new_full((len(ordered), most), torch.inf)
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    table[row, place] = values
    return torch.searchsorted(ordered, table, right=right)[row, place]
