"""Ranking on a GPU: what reid.metrics.retrieval computes per query, for a block of queries at once.

No gallery is sorted. How many images are nearer than a match is counted: every distance of a block is put between the
bounds of the query's matches. The images that are too near to a match, or to the last place asked for, to be told from
it in float32 are compared in float64. Scores and lists are those of the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.metrics.scores import RankedQuery

PAIR_BYTES = 256 * 2**20  # of features that are compared in float64 at a time
COMPARED = 2**24  # pairs of a match and an image near it that are gone through at once
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows of a block, ascending, and gallery indices


class DeviceComparison:
    """Ranks and nearest images of blocks of queries.

    Args:
        features: gallery [G, D], as given: float32 or float64.
        origin: [D] of the same type, see `reid.metrics.retrieval`.
        kept: bool [G], what can be found; the rest is infinitely far from everybody.
        device: of all the work; float64 is needed there.
    """

    def __init__(
        self,
        features: NDArray[Any],
        origin: NDArray[Any],
        kept: NDArray[np.bool_],
        unit_roundoff: float,
        smallest: float,
        device: torch.device,
    ) -> None:
        self._roundoff, self._tiny, self._device = unit_roundoff, smallest, device
        self._features, self._origin = (
            torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in (features, origin)
        )
        self._centred, squares = self._moved(self._features)
        can_be_found = torch.from_numpy(kept).to(device)
        self._offsets = squares.where(can_be_found, torch.inf).float()
        self.squares = squares.cpu().numpy()  # float64 [G], squared lengths of the centred features
        self._largest, self._smallest = float(self.squares[kept].max()), float(self.squares[kept].min())

    def squares_of(self, queries: NDArray[Any]) -> NDArray[np.float64]:
        """Squared lengths [B] of the centred features of queries [B, D]."""
        found: NDArray[np.float64] = self._moved(torch.from_numpy(queries).to(self._device))[1].cpu().numpy()
        return found

    def block(
        self, indices: NDArray[np.int64], queries: NDArray[Any], removed: Pairs, matches: Pairs, ranked: int
    ) -> Iterator[RankedQuery]:
        """What the queries of a block find.

        Args:
            indices: of the queries.
            queries: their features [B, D], as given.
            removed: what is removed for them.
            matches: what is right for them; there may be none.
            ranked: how many nearest images to return.
        """
        device = self._device
        asked = torch.from_numpy(queries).to(device)
        moved, squares = self._moved(asked)
        with _float32_products():
            distances = moved.mul_(-2) @ self._centred.T
        distances += self._offsets  # squared distances less the query's own square
        distances[tuple(torch.from_numpy(each).to(device) for each in removed)] = torch.inf
        length = squares.sqrt()
        row, counts = matches[0], np.bincount(matches[0], minlength=len(indices))
        ranks = self._ranks(distances, asked, length, matches, counts) if len(row) else row
        ranks = ranks[np.lexsort((ranks, row))]
        nearest = [np.empty(0, np.int64)] * len(indices)
        if ranked:
            nearest = self._nearest(distances, asked, length, ranked)
        for index, found, near in zip(indices, np.split(ranks, np.cumsum(counts)[:-1]), nearest, strict=True):
            yield RankedQuery(int(index), found, near)

    def _moved(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, D] as seen from the origin, float32, and their squared lengths, float64 [N]."""
        moved = torch.empty(features.shape, dtype=torch.float32, device=self._device)
        squares = torch.empty(len(features), dtype=torch.float64, device=self._device)
        for start in range(0, len(features), step := self._rows_at_once()):
            rows = slice(start, start + step)
            moved[rows] = features[rows] - self._origin
            squares[rows] = moved[rows].double().square_().sum(dim=1)
        return moved, squares

    def _ranks(
        self, distances: Tensor, asked: Tensor, length: Tensor, matches: Pairs, counts: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The rank of each match."""
        device, queries = self._device, len(distances)
        first = np.cumsum(counts) - counts
        row, column, place = (
            torch.from_numpy(each).to(device) for each in (*matches, np.arange(len(matches[0])) - first[matches[0]])
        )
        values = distances[row, column].double()
        low, high = (
            torch.full((queries,), fill, dtype=torch.float64, device=device).scatter_reduce(0, row, values, reduce)
            for fill, reduce in ((torch.inf, "amin"), (-torch.inf, "amax"))
        )
        margin = self._margin(length, low, high)[row]
        lows, highs = _outwards(values - margin, values + margin)
        # images below `lows` are nearer; those from there to `highs`, the match itself among them, may be
        bounds = torch.full((queries, 2 * int(counts.max())), torch.inf, device=device)
        bounds[row, 2 * place] = lows
        bounds[row, 2 * place + 1] = highs.nextafter(torch.full_like(highs, torch.inf))
        ordered, order = bounds.sort(dim=1)
        where = order.argsort(dim=1)
        low_at, high_at = where[row, 2 * place], where[row, 2 * place + 1]
        passed = torch.searchsorted(ordered, distances, right=True)  # bounds that are not above the distance, [B, G]
        below = torch.zeros(queries, bounds.shape[1] + 1, dtype=torch.int64, device=device)
        below.scatter_add_(1, passed, passed.new_ones(()).expand_as(passed))
        below = below.cumsum(dim=1)  # images below each of the ordered bounds
        nearer, beyond = below[row, low_at], below[row, high_at]
        unclear = torch.nonzero(beyond > nearer + 1)[:, 0]
        if len(unclear):
            doubtful = row, column, low_at, high_at, lows, highs
            row, column, low_at, high_at, lows, highs = (each[unclear] for each in doubtful)
            opened = torch.zeros_like(below)
            for bound, change in ((low_at, 1), (high_at, -1)):
                opened.index_put_((row, bound + 1), bound.new_full((), change), accumulate=True)
            asker, rival = torch.nonzero((opened.cumsum(dim=1) > 0).gather(1, passed)).unbind(1)
            exact = self._exact(asked, asker, rival)
            count = distances.shape[1]
            own = exact[torch.searchsorted(asker * count + rival, row * count + column)]
            keys, by_key = _keys(asker, distances[asker, rival]).sort()
            start, stop = (
                torch.searchsorted(keys, _keys(row, bound), right=right)
                for bound, right in ((lows, False), (highs, True))
            )
            for some in _portions((stop - start).cpu().numpy()):
                which, step = _stretches((stop - start)[some])
                other, which = by_key[start[some][which] + step], which + some.start
                tied = (exact[other] == own[which]) & (rival[other] < column[which])
                nearer.index_add_(0, unclear[which], ((exact[other] < own[which]) | tied).long())
        found: NDArray[np.int64] = (nearer + 1).cpu().numpy()
        return found

    def _nearest(self, distances: Tensor, asked: Tensor, length: Tensor, count: int) -> list[NDArray[np.int64]]:
        """Indices of each query's `count` nearest images that are not removed, in order; fewer where fewer are left."""
        smallest = distances.topk(min(count, distances.shape[1]), dim=1, largest=False, sorted=False).values.double()
        last = smallest.amax(dim=1)
        bound = last + self._margin(length, smallest.amin(dim=1), last)
        _, high = _outwards(bound, bound)
        high = torch.where(last.isfinite(), high, torch.full_like(high, torch.finfo(torch.float32).max))
        query, found = torch.nonzero(distances <= high[:, None]).unbind(1)  # in the order of their indices
        by_distance = self._exact(asked, query, found).argsort(stable=True)
        final = by_distance[query[by_distance].argsort(stable=True)]
        widths = torch.bincount(query, minlength=len(distances)).cpu().numpy()
        lists = np.split(found[final].cpu().numpy(), np.cumsum(widths)[:-1])
        return [one[:count] for one in lists]

    def _exact(self, asked: Tensor, query: Tensor, rival: Tensor) -> Tensor:
        """Squared distances in float64 of pairs, each summed in the same order, so that equal rows give equal ones."""
        exact = torch.empty(len(rival), dtype=torch.float64, device=self._device)
        for start in range(0, len(rival), step := self._rows_at_once()):
            pairs = slice(start, start + step)
            difference = self._features[rival[pairs]].double() - asked[query[pairs]].double()
            exact[pairs] = _sums(difference.square_())
        return exact

    def _rows_at_once(self) -> int:
        return max(1, PAIR_BYTES // (8 * self._features.shape[1]))

    def _margin(self, length: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
        """As of reid.metrics.retrieval; all float64 [B]."""
        dimensions = self._features.shape[1]
        bound = length * self._largest**0.5
        product = torch.maximum(self._largest - lowest, highest - self._smallest) / 2
        of_dot = dimensions**0.5 * torch.minimum(product, bound) + 8 * bound
        margin: Tensor = 4 * self._roundoff * (of_dot + self._largest + 2 * bound) + self._tiny * dimensions
        return margin


@contextmanager
def _float32_products() -> Iterator[None]:
    """Products of float32 numbers as such, whatever this process allows (TF32, bfloat16): the margin is float32's."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
        return
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in backends]
    try:
        for each in backends:
            each.fp32_precision = "ieee"
        yield
    finally:
        for each, precision in zip(backends, before, strict=True):
            each.fp32_precision = precision


def _sums(rows: Tensor) -> Tensor:
    """The sum of each row [n, D], added in the same order for any n: that of a GPU's own sum depends on n."""
    while (width := rows.shape[1]) > 1:
        half = width // 2
        folded = rows[:, :half] + rows[:, half : 2 * half]
        if width % 2:
            folded[:, 0] += rows[:, -1]
        rows = folded
    return rows[:, 0]


def _keys(row: Tensor, values: Tensor) -> Tensor:
    """int64 numbers in the order of (row, float32 value): a float's bits are in its order once those below the sign of
    negative ones are turned."""
    bits = (values + 0.0).view(torch.int32).long()  # -0 becomes 0
    return row * 2**32 + (bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _portions(widths: NDArray[np.int64]) -> Iterator[slice]:
    """Stretches of these lengths a few at a time, together at most COMPARED long: a model that gives all images the
    same feature leaves every match unclear."""
    ends, start = np.cumsum(widths), 0
    while start < len(widths):
        before = ends[start] - widths[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + COMPARED, "right")))
        yield slice(start, stop)
        start = stop


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
