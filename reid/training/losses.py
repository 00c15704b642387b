"""The losses of both stages and the identity memory (Sec. 4 and 5 of the method).

Every loss is a mean; over an empty batch or no parts it is 0 with a gradient path, never NaN.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.training.class_loss import class_loss, smoothed_cross_entropy

_DICE_UNIT = 1000.0  # patches; sums are divided by it, which gives the small constant its weight
_DICE_EPSILON = 1e-6


def identity_loss(features: Tensor, classes: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """L_id: smoothed cross-entropy of the classifier's logits, and the identity (B,) int64 that it prefers.

    Args:
        features: (B, F), after the neck.
        classes: (K, F), the classifier's weight.
        labels: (B,) int64 in 0..K-1.
    """
    return class_loss(features, classes, labels, smoothing)


def text_loss(
    features: Tensor, text_prototypes: Tensor, labels: Tensor, smoothing: float, temperature: float = 1.0
) -> Tensor:
    """L_i2tce: smoothed cross-entropy of features . text^T / temperature, neither side normalised.

    Args:
        features: (B, F), before the neck.
        text_prototypes: (K, F), one row per identity.
        labels: (B,) int64 in 0..K-1.
    """
    with torch.autocast(features.device.type, enabled=False):  # logits near 100 have steps of 0.5 in bfloat16
        return class_loss(features.float(), text_prototypes.float(), labels, smoothing, temperature)[0]


def prompt_loss(text: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
    """Stage 1: cross-entropy of softmax(normalize(t_y) . c^T / 1.0) against y.

    Args:
        text: (B, F) text features of the prompts of `labels`, not normalised.
        prototypes: (K, F) L2-normalised image prototypes c, constant.
        labels: (B,) int64 in 0..K-1.
    """
    return smoothed_cross_entropy(F.normalize(text, dim=1) @ prototypes.T, labels, smoothing=0.0)


def mask_bce_loss(mask_logits: Tensor, visible: Tensor, weights: Tensor | None = None) -> Tensor:
    """L_bce: binary cross-entropy of the raw logits, whatever the gate's temperature.

    Args:
        mask_logits: (layers, B, R, L).
        visible: (B, R, L) bool, the pseudo-labels; the same for every layer.
        weights: (B, R) of each part of each image, sum 1; None: equal.
    """
    targets = visible.to(mask_logits.dtype).expand_as(mask_logits)
    costs = F.binary_cross_entropy_with_logits(mask_logits, targets, reduction="none")
    return _mean(costs.mean(-1), weights)


def mask_dice_loss(
    mask_logits: Tensor, visible: Tensor, temperature: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """L_dice: 1 - mean over layers, images and parts of the soft Dice overlap (Milletari et al. 2016).

    Args:
        mask_logits: (layers, B, R, L).
        visible: (B, R, L) bool, the pseudo-labels.
        temperature: tau of p = sigmoid(logits / tau).
        weights: (B, R), as for `mask_bce_loss`.
    """
    probs = torch.sigmoid(mask_logits / temperature)  # (layers, B, R, L)
    targets = visible.to(probs.dtype)
    overlap = 2 * (probs * targets).sum(-1) / _DICE_UNIT + _DICE_EPSILON  # (layers, B, R)
    total = (probs.sum(-1) + targets.sum(-1)) / _DICE_UNIT + _DICE_EPSILON
    return _mean(1 - overlap / total, weights)


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of (layers, B, R) over everything, or over the layers and weighted over the rest."""
    if weights is None:
        return values.sum() / max(values.numel(), 1)
    return (values.mean(0) * weights).sum()


class IdentityMemory(nn.Module):
    """Contrasts a batch with all identities; the backward pass then moves the rows of the batch's identities.

    Args:
        prototypes: (K, F) L2-normalised, the rows to begin with; copied.
        temperature: of the softmax over identities.
        momentum: weight of the old row in an update, 0..1.
    """

    rows: Tensor  # (K, F), L2-normalised

    def __init__(self, prototypes: Tensor, temperature: float, momentum: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.momentum = momentum
        self.register_buffer("rows", prototypes.detach().float().clone())

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        visible_slices: Tensor | None = None,
        among: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Cross-entropy of features . rows^T / temperature against the labels.

        The update happens in the backward pass of the result, so evaluating without gradients changes nothing.

        Args:
            features: (B, F) L2-normalised.
            labels: (B,) int64 in 0..K-1.
            visible_slices: (B, F) 0 in the slices of absent parts, where the features are 0 too, else 1; None: all 1.
            among: the identities (S,) int64 that the features are contrasted with, and the places (B,) of the labels
                among them; None: all K.
        """
        chosen, targets = among or (None, labels)
        rows = self.rows if chosen is None else self.rows[chosen]
        with torch.autocast(features.device.type, enabled=False):  # at temperature 0.01 half precision is too coarse
            used = _UpdatesRows.apply(features.float(), labels, self.rows, self.momentum, visible_slices)
            return class_loss(used, rows, targets, smoothing=0.0, temperature=self.temperature)[0]


class _UpdatesRows(torch.autograd.Function):
    """Gives the features back; its backward pass, the last that needs the `rows` (K, F), updates them in place."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        labels: Tensor,
        rows: Tensor,
        momentum: float,
        visible_slices: Tensor | None,
    ) -> Tensor:
        # autograd refuses rows that changed before the backward pass
        ctx.save_for_backward(features, labels, rows, visible_slices)
        ctx.momentum = momentum
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        features, labels, rows, visible_slices = ctx.saved_tensors
        update_with_hardest(rows, features, labels, ctx.momentum, visible_slices)
        return gradients[0], None, None, None, None


@torch.no_grad()
def update_with_hardest(
    rows: Tensor, features: Tensor, labels: Tensor, momentum: float, visible_slices: Tensor | None = None
) -> None:
    """m_y <- normalize(momentum * m_y + (1 - momentum) * f), f the sample of y least similar to m_y; in place.

    A sample with absent parts is compared with the row's slices of its visible parts, and its absent slices are taken
    from the row, so an absent part neither makes a sample the hardest nor changes the row's slice of that part.

    Args:
        rows: (K, F) L2-normalised.
        features: (B, F) L2-normalised.
        labels: (B,) int64; identities that are not among them keep their row.
        visible_slices: (B, F) 1 or 0, features are 0 where it is 0; None: all 1.
    """
    if not len(labels):
        return
    own = rows[labels]  # (B, F)
    similarity = (features * own).sum(dim=1)  # (B,), each sample to its own identity's row
    if visible_slices is not None:
        norm = (own * visible_slices).norm(dim=1, keepdim=True)  # (B, 1), of the row's slices of visible parts
        similarity = similarity / norm[:, 0].clamp_min(1e-12)
        features = features * norm + own * (1 - visible_slices)
    same = labels[:, None] == labels[None, :]  # (B, B)
    hardest = similarity.expand_as(same).masked_fill(~same, torch.inf).argmin(dim=1)  # (B,), equal within an identity
    moved = momentum * own + (1 - momentum) * features[hardest]
    rows[labels] = F.normalize(moved, dim=1)  # an identity's samples all write the same row
