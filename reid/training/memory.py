"""One remembered feature per identity, to be matched and slowly replaced (L_imp, Sec. 5 of the method)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.training.losses import smoothed_cross_entropy


class IdentityMemory(nn.Module):
    """Contrasts a batch with all identities; the backward pass then moves the rows of the batch's identities.

    Args:
        prototypes: (K, F) L2-normalised, the rows to begin with; copied.
        temperature: of the softmax over identities.
        momentum: share of the old row that an update keeps, 0..1.
    """

    rows: Tensor  # (K, F), L2-normalised

    def __init__(self, prototypes: Tensor, temperature: float, momentum: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.momentum = momentum
        self.register_buffer("rows", prototypes.detach().float().clone())

    def forward(self, features: Tensor, labels: Tensor, seen: Tensor | None = None) -> Tensor:
        """Cross-entropy of features . rows^T / temperature against the labels.

        The update happens in the backward pass of the result, so evaluating without gradients changes nothing.

        Args:
            features: (B, F) L2-normalised.
            labels: (B,) int64 in 0..K-1.
            seen: (B, F) 1 where the feature belongs to something seen, 0 where it is 0 for an absent part; None: all.
        """
        with torch.autocast(features.device.type, enabled=False):  # at temperature 0.01 half precision is too coarse
            similarity = _RememberingProduct.apply(features.float(), labels, self.rows, self.momentum, seen)
            return smoothed_cross_entropy(similarity / self.temperature, labels, smoothing=0.0)


class _RememberingProduct(torch.autograd.Function):
    """features (B, F) @ rows^T (F, K), whose backward updates `rows` in place after using them."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, labels: Tensor, rows: Tensor, momentum: float, seen: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(
            features, labels, rows, seen
        )  # autograd then refuses rows that changed before the backward
        ctx.momentum = momentum
        return features @ rows.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        features, labels, rows, seen = ctx.saved_tensors
        feature_gradient = gradients[0] @ rows
        remember_hardest(rows, features, labels, ctx.momentum, seen)
        return feature_gradient, None, None, None, None


@torch.no_grad()
def remember_hardest(
    rows: Tensor, features: Tensor, labels: Tensor, momentum: float, seen: Tensor | None = None
) -> None:
    """m_y <- normalize(momentum * m_y + (1 - momentum) * f), f the sample of y least similar to m_y; in place.

    A sample with absent parts is compared with the seen share of the row, and what it does not show is filled from
    the row, so an absent part neither makes a sample the hardest nor changes what is remembered of that part.

    Args:
        rows: (K, F) L2-normalised.
        features: (B, F) L2-normalised.
        labels: (B,) int64; identities that are not among them keep their row.
        seen: (B, F) 1 or 0, features are 0 where it is 0; None: everything is seen.
    """
    if not len(labels):
        return
    own = rows[labels]  # (B, F)
    similarity = (features * own).sum(dim=1)  # (B,), each sample to its own identity's row
    if seen is not None:
        share = (own * seen).norm(dim=1, keepdim=True)  # (B, 1), length of the seen part of the row
        similarity = similarity / share[:, 0].clamp_min(1e-12)
        features = features * share + own * (1 - seen)
    same = labels[:, None] == labels[None, :]  # (B, B)
    hardest = similarity.expand_as(same).masked_fill(~same, torch.inf).argmin(dim=1)  # (B,), equal within an identity
    moved = momentum * own + (1 - momentum) * features[hardest]
    rows[labels] = F.normalize(moved, dim=1)  # an identity's samples all write the same row
