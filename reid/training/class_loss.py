"""Cross-entropy over the rows of a table, one per identity: exact for any number of them, in bounded memory."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_BYTES = 32 * 2**20  # of float32 logits that exist at once; published protocols stay far below it


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy against 1 - e on the class plus e / K everywhere (Szegedy et al. 2016).

    Args:
        logits: (B, K) float.
        labels: (B,) int64 in 0..K-1.
        smoothing: e in [0, 1).
    """
    total = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    return total / max(len(labels), 1)


def class_loss(
    features: Tensor, rows: Tensor, labels: Tensor, smoothing: float, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Smoothed cross-entropy of features . rows^T / temperature, and the class (B,) int64 of the largest logit.

    With more logits than BLOCK_BYTES they are computed block by block of the rows, and once more in the backward pass;
    that changes the loss and its gradients by rounding alone.

    Args:
        features: (B, F).
        rows: (K, F).
        labels: (B,) int64 in 0..K-1.
        smoothing: e in [0, 1).
    """
    block = max(1, BLOCK_BYTES // (4 * max(1, len(features))))
    if block < len(rows):
        loss, best = _BlockedCrossEntropy.apply(features, rows, labels, smoothing, temperature, block)
        return loss, best
    logits = F.linear(features, rows)
    if temperature != 1:
        logits = logits / temperature
    return smoothed_cross_entropy(logits, labels, smoothing), logits.argmax(dim=1)


class _BlockedCrossEntropy(torch.autograd.Function):
    """`class_loss` for `block` rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, rows: Tensor, labels: Tensor, smoothing: float, temperature: float, block: int
    ) -> tuple[Tensor, Tensor]:
        kind = features.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        ctx.settings = smoothing, temperature, block, half
        count, precise = len(features), torch.promote_types(features.dtype, torch.float32)
        normaliser = torch.full((count,), -torch.inf, dtype=precise, device=features.device)  # log of the sum of exp
        largest, total, own = normaliser.clone(), torch.zeros_like(normaliser), torch.zeros_like(normaliser)
        best = torch.zeros_like(labels)
        with torch.autocast(kind, enabled=False):
            for start, part in _blocks(rows, block):
                logits = _product(features, part.T, half).to(precise) / temperature
                normaliser = torch.logaddexp(normaliser, logits.logsumexp(dim=1))
                total += logits.sum(dim=1)
                values, places = logits.max(dim=1)
                best = torch.where(values > largest, places + start, best)
                largest = torch.maximum(largest, values)
                here, place = _places(labels, start, len(part))
                own = torch.where(here, logits.gather(1, place[:, None])[:, 0], own)
        ctx.save_for_backward(features, rows, labels, normaliser)
        losses = normaliser - (1 - smoothing) * own - smoothing * total / len(rows)
        ctx.mark_non_differentiable(best)
        return losses.sum() / max(count, 1), best

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        features, rows, labels, normaliser = ctx.saved_tensors
        smoothing, temperature, block, half = ctx.settings
        scale = gradients[0] / (max(len(features), 1) * temperature)
        of_features = torch.zeros_like(features, dtype=normaliser.dtype) if ctx.needs_input_grad[0] else None
        of_rows = torch.empty_like(rows) if ctx.needs_input_grad[1] else None
        with torch.autocast(features.device.type, enabled=False):
            for start, part in _blocks(rows, block):
                logits = _product(features, part.T, half).to(normaliser.dtype) / temperature
                changes = logits.sub_(normaliser[:, None]).exp_().sub_(smoothing / len(rows))
                here, place = _places(labels, start, len(part))
                changes.scatter_add_(1, place[:, None], -(1 - smoothing) * here.to(changes.dtype)[:, None])
                changes *= scale
                if of_features is not None:
                    of_features += _product(changes, part, half)
                if of_rows is not None:
                    of_rows[start : start + len(part)] = _product(changes.T, features, half)
        if of_features is not None:
            of_features = of_features.to(features.dtype)
        return of_features, of_rows, None, None, None, None


def _blocks(rows: Tensor, block: int) -> list[tuple[int, Tensor]]:
    return [(start, rows[start : start + block]) for start in range(0, len(rows), block)]


def _places(labels: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Which labels are among the `count` classes from `start`, and their places there (0 for the others)."""
    here = (labels >= start) & (labels < start + count)
    return here, torch.where(here, labels - start, 0)


def _product(left: Tensor, right: Tensor, half: torch.dtype | None) -> Tensor:
    """left @ right as autocast does it: in half precision where that is on."""
    return left @ right if half is None else left.to(half) @ right.to(half)
