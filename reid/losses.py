"""The losses of both stages (Sec. 4 and 5 of the method): pure functions of tensors.

Every one is a mean; over nothing (an empty batch, no parts) it is 0 with a gradient path, never NaN.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_DICE_UNIT = 1000.0  # patches; sums are divided by it, which gives the small constant its weight
_DICE_EPSILON = 1e-6


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy against 1 - e on the class plus e / K everywhere (Szegedy et al. 2016).

    Args:
        logits: (B, K) float.
        labels: (B,) int64 in 0..K-1.
        smoothing: e in [0, 1).
    """
    total = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    return total / max(len(labels), 1)


def identity_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """L_id: smoothed cross-entropy of the classifier's logits (B, K) after the neck against labels (B,)."""
    return smoothed_cross_entropy(logits, labels, smoothing)


def text_loss(
    features: Tensor, text_prototypes: Tensor, labels: Tensor, smoothing: float, temperature: float = 1.0
) -> Tensor:
    """L_i2tce: smoothed cross-entropy of features . text^T / temperature, neither side normalised.

    Args:
        features: (B, F), before the neck.
        text_prototypes: (K, F), one row per identity.
        labels: (B,) int64 in 0..K-1.
    """
    return smoothed_cross_entropy(features @ text_prototypes.T / temperature, labels, smoothing)


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
        weights: (B, R), how much each part of each image counts, e.g. `present_weights`; None: all alike.
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
    shown = torch.sigmoid(mask_logits / temperature)  # (layers, B, R, L)
    targets = visible.to(shown.dtype)
    overlap = 2 * (shown * targets).sum(-1) / _DICE_UNIT + _DICE_EPSILON  # (layers, B, R)
    total = (shown.sum(-1) + targets.sum(-1)) / _DICE_UNIT + _DICE_EPSILON
    return _mean(1 - overlap / total, weights)


def present_weights(present: Tensor) -> Tensor:
    """(B, R) bool, which part is seen in which image -> (B, R) weights: the seen ones alike and 1 together."""
    return present / present.sum().clamp_min(1)


def seen_features(present: Tensor, feature_dim: int) -> Tensor:
    """Which entries of a feature belong to something seen: (B, R) bool -> (B, F) float 0 or 1, the whole person first.

    Multiplied into a feature it takes the slices of absent parts out of every product with a classifier row, a text
    prototype or a memory row; after the neck 0 is also what an average image has there.
    """
    whole = present.new_ones(len(present), 1)
    granularities = torch.cat([whole, present], dim=1).float()  # (B, 1 + R)
    return granularities.repeat_interleave(feature_dim // granularities.shape[1], dim=1)


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of (layers, B, R) over everything, or over the layers and weighted over the rest."""
    if weights is None:
        return values.sum() / max(values.numel(), 1)
    return (values.mean(0) * weights).sum()
