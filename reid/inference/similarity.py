"""How alike two images are: the cosine of their features over the parts that both show.

A feature is 1 + R blocks of equal length: the whole person, then the parts. With w_b(x) the weight of block b in image
x, 0 for a hidden part, and q_b, g_b the blocks of query and gallery,

    similarity(q, g) = sum_b w_b(q) w_b(g) q_b . g_b / sqrt(sum_b w_b(q) w_b(g) |q_b|^2 * sum_b w_b(q) w_b(g) |g_b|^2)

Where both images show all parts this is the cosine of the whole features, by which runs are scored. The three sums are
matrix products, so that a block of the gallery costs one large product and two of width 1 + R.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import UsageError

FULLY_VISIBLE = 0.02  # of the patches; a part that fewer patches show weighs less, in proportion
WHOLE = "whole"  # the block of the whole person


@dataclass(frozen=True)
class Comparison:
    """Which blocks of the features are compared.

    parts: names of the R parts. only: a part, or "whole"; None: the person and all parts that both images show.
    """

    parts: tuple[str, ...]
    only: str | None = None

    def __post_init__(self) -> None:
        known = (WHOLE, *self.parts)
        if self.only is not None and self.only not in known:
            raise UsageError(f"there is no part {self.only!r}", fix=f"choose one of {', '.join(known)}")

    def weights(self, visibility: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weights [N, 1 + R] in 0..1 of the blocks of images with this visibility [N, R]."""
        found = np.ones((len(visibility), 1 + len(self.parts)), np.float32)
        np.minimum(visibility / np.float32(FULLY_VISIBLE), 1, out=found[:, 1:])
        if self.only is not None:
            chosen = (WHOLE, *self.parts).index(self.only)
            found[:, [place for place in range(found.shape[1]) if place != chosen]] = 0
        return found


@dataclass(frozen=True)
class Side:
    """Images made ready to be compared. rows float32 [N, F], the blocks times their weights; weights [N, B]; squares
    [N, B], the weights times the blocks' squared lengths. plain: all weights are 1 and all features have length 1."""

    rows: NDArray[np.float32]
    weights: NDArray[np.float32]
    squares: NDArray[np.float32]
    plain: bool

    @classmethod
    def of(cls, features: NDArray[Any], visibility: NDArray[np.float32], comparison: Comparison) -> "Side":
        """features [N, F] of any precision."""
        rows = np.asarray(features, np.float32)
        weights = comparison.weights(visibility)
        blocks = rows.reshape(len(rows), weights.shape[1], rows.shape[1] // weights.shape[1])
        lengths = np.einsum("nbe,nbe->nb", blocks, blocks)
        plain = bool((weights == 1).all())
        if not plain:
            rows = (blocks * weights[:, :, None]).reshape(rows.shape)
        return cls(rows, weights, weights * lengths, plain)


def similarities(query: Side, gallery: Side) -> NDArray[np.float32]:
    """Float32 [Q, G] in -1..1; NaN where the images have no part in common that is compared."""
    products: NDArray[np.float32] = query.rows @ gallery.rows.T
    if query.plain and gallery.plain:
        lengths = np.sqrt(query.squares.sum(1))[:, None] * np.sqrt(gallery.squares.sum(1))
    else:
        lengths = np.sqrt((query.squares @ gallery.weights.T) * (query.weights @ gallery.squares.T))
    with np.errstate(invalid="ignore", divide="ignore"):
        products /= lengths
    np.clip(products, -1, 1, out=products)
    return products


def exact_similarities(
    query: NDArray[Any],
    query_visibility: NDArray[np.float32],
    gallery: NDArray[Any],
    visibility: NDArray[np.float32],
    comparison: Comparison,
) -> NDArray[np.float64]:
    """The formula in float64 for one query [F] and n images [n, F]; equal rows give equal numbers."""
    weights = comparison.weights(query_visibility[None]).astype(np.float64)[0] * comparison.weights(visibility)
    shape = (weights.shape[1], len(query) // weights.shape[1])
    own, others = query.astype(np.float64).reshape(1, *shape), gallery.astype(np.float64).reshape(len(gallery), *shape)
    products = ((own * others).sum(2) * weights).sum(1)
    lengths = (((own**2).sum(2) * weights).sum(1) * ((others**2).sum(2) * weights).sum(1)) ** 0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = np.clip(products / lengths, -1, 1)
    return found
