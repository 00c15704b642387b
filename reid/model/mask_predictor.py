"""Which patches belong to which part, predicted from the tokens of one block (Sec. 2 of the method, AM-MSA)."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP (Radford et al. 2021)."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * torch.sigmoid(1.702 * inputs)


class MaskPredictor(nn.Module):
    """Part tokens ask the patch tokens of one block where their part is.

    Args:
        width: D, width of the tokens.
        num_patches: L.
        heads: attention heads; they must divide the width.
    """

    def __init__(self, width: int, num_patches: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.ln_queries = nn.LayerNorm(width)
        self.ln_patches = nn.LayerNorm(width)
        self.ln_mlp = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width)
        first, second = nn.Linear(width, num_patches), nn.Linear(num_patches, num_patches)
        self.mlp = nn.Sequential(first, QuickGELU(), second)
        for layer in (self.to_q, self.to_k, self.to_v, self.to_out, first, second):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(first.bias)
        nn.init.zeros_(second.bias)

    def forward(self, parts: Tensor, patches: Tensor) -> Tensor:
        """parts (B, R, D) and patches (B, L, D), the block's input -> this layer's share z of the logits (B, R, L)."""
        if torch.is_grad_enabled():  # normalised patches are cheaper made again in the backward pass than kept
            attended = checkpoint(self._attend, parts, patches, use_reentrant=False, preserve_rng_state=False) + parts
        else:
            attended = self._attend(parts, patches) + parts  # (B, R, D)
        share: Tensor = self.mlp(self.ln_mlp(attended))
        return share

    def _attend(self, parts: Tensor, patches: Tensor) -> Tensor:
        """Cross-attention of the normalised tokens, (B, R, D) x (B, L, D) -> (B, R, D).

        With few queries it is cheaper to carry the key and value projections over to their side:
        q (W_k x)^T = (q W_k) x^T and a (W_v x) = W_v (a x), so no (B, L, D) keys and values are made.
        """
        queries, patches = self.ln_queries(parts), self.ln_patches(patches)
        batch, count, width = queries.shape
        heads, depth = self.heads, width // self.heads
        asked = self.to_q(queries).view(batch, count, heads, depth)
        asked = torch.einsum("brhd,hdw->bhrw", asked, self.to_k.weight.view(heads, depth, width)).flatten(1, 2)
        scores = asked @ patches.transpose(1, 2) * self.scale  # (B, heads * R, L)
        pooled = (scores.softmax(dim=-1) @ patches).view(batch, heads, count, width)
        values = torch.einsum("bhrw,hdw->brhd", pooled, self.to_v.weight.view(heads, depth, width))
        mixed: Tensor = self.to_out(values.flatten(2))
        return mixed
