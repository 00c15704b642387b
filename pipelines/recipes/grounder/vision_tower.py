"""The vision tower over a batch of images of one size at once, and what each of its tokens is trained to say.

transformers runs the tower image by image; pictures of one size need no such care. Same weights, same result.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.recipes.grounder.architecture import HEAD, PATCH, TEXT_WIDTH, rope_frequencies

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the family's image processor
STD = (0.26862954, 0.26130258, 0.27577711)

AGREED_WEIGHT = 6.0  # of how far the tokens' common box is off, in shares of the part's own sides
HEARING = 0.25  # length of the directions in which tokens are heard


def patches(pixels: Tensor) -> Tensor:
    """[B, H, W, 3] uint8 -> [B, rows * columns, 3 * PATCH * PATCH] normalised, in the processor's order."""
    batch, height, width, _ = pixels.shape
    cut = pixels.view(batch, height // PATCH, PATCH, width // PATCH, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
    values = cut.reshape(batch, -1, 3, PATCH * PATCH).float()
    mean, std = (torch.tensor(each, device=pixels.device)[:, None] for each in (MEAN, STD))
    return values.sub_(255 * mean).mul_(1 / (255 * std)).flatten(2)


def centres(rows: int, columns: int, device: torch.device) -> Tensor:
    """[rows * columns, 2] x and y of the tokens' middles in tokens."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1) + 0.5


def look(visual: Any, seen: Tensor, rows: int, columns: int) -> Tensor:
    """The tower's tokens [B, N, TEXT_WIDTH] of patches [B, N, 3 * PATCH * PATCH]; N = rows * columns."""
    weight = visual.patch_embed.proj.weight.sum(dim=2).flatten(1)  # both frames of a still picture are the same
    tokens = F.linear(seen, weight)
    cos, sin = _rotation(rows, columns, seen.device)
    for block in visual.blocks:
        tokens = tokens + _attend(block.attn, _norm(block.norm1, tokens), cos, sin)
        inner, mlp = _norm(block.norm2, tokens), block.mlp
        tokens = tokens + mlp.down_proj(F.silu(mlp.gate_proj(inner)) * mlp.up_proj(inner))
    merged: Tensor = visual.merger.mlp(_norm(visual.merger.ln_q, tokens))
    return merged


class DenseHeads(nn.Module):
    """Supervision of every token in training, left out of the checkpoint.

    coverage: which parts lie over the token. votes: where it believes the sides of the parts' boxes to be, relative
    to itself, asked of the tokens inside a box as FCOS does (Tian et al. 2019). place: what the language model's first
    layer should know, the token's column and row. What is seen is heard in fixed directions and weakly: the tower
    has to say it louder than all else, and the language model finds it at once.
    """

    def __init__(self, parts: int = 3) -> None:
        super().__init__()
        self.parts = parts
        self.seen = nn.Linear(TEXT_WIDTH, parts * 5, bias=False).requires_grad_(False)
        nn.init.orthogonal_(self.seen.weight, gain=HEARING)
        self.place = nn.Linear(TEXT_WIDTH, 2)

    def forward(self, tokens: Tensor, middles: Tensor) -> tuple[Tensor, Tensor]:
        """Coverage logits [B, N, parts] and voted boxes [B, N, parts, 4] in tokens."""
        said = self.seen(tokens).float()
        coverage, offsets = said[..., : self.parts], said[..., self.parts :]
        votes = 4 * offsets.view(*offsets.shape[:2], self.parts, 4) + torch.cat([middles, middles], dim=1)[:, None]
        return coverage, votes


def dense_loss(coverage: Tensor, votes: Tensor, boxes: Tensor, middles: Tensor) -> Tensor:
    """Loss of the heads' answers; boxes [B, parts, 4] in tokens, NaN where a part is not visible."""
    visible = boxes.isfinite().all(dim=-1)  # [B, parts]
    known = boxes.nan_to_num(-1.0)
    x, y = middles[None, :, None, 0], middles[None, :, None, 1]
    left, top, right, bottom = (side[:, None, :] for side in known.unbind(-1))
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)  # [B, N, parts]
    covered = F.binary_cross_entropy_with_logits(coverage, inside.float())
    error = F.smooth_l1_loss(votes, known[:, None].expand_as(votes), reduction="none", beta=0.3).mean(-1)
    weight = (visible[:, None] & inside).float()  # a part's own tokens can know it, others would have to guess
    voted = (error * weight).sum() / weight.sum().clamp_min(1.0)
    side = (known[..., 2:] - known[..., :2]).clamp_min(1.0).repeat(1, 1, 2)
    apart = F.smooth_l1_loss(consensus(coverage, votes) / side, known / side, reduction="none", beta=0.1).mean(-1)
    return covered + voted + AGREED_WEIGHT * (apart * visible).sum() / visible.sum().clamp_min(1)


def consensus(coverage: Tensor, votes: Tensor) -> Tensor:
    """[B, parts, 4] boxes in tokens that the tokens of each part agree on."""
    weight = coverage.sigmoid().square()[..., None] + 1e-6
    return (votes * weight).sum(1) / weight.sum(1)


def _norm(norm: Any, tokens: Tensor) -> Tensor:
    return F.rms_norm(tokens, (tokens.shape[-1],), norm.weight, 1e-6)


def _attend(attention: Any, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch, count, width = tokens.shape
    query, key, value = attention.qkv(tokens).view(batch, count, 3, -1, HEAD).permute(2, 0, 3, 1, 4)
    query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
    # torch's fused attention needs three times as long backwards on a CPU
    scores = query @ key.transpose(2, 3) * HEAD**-0.5
    mixed = scores.softmax(dim=-1).to(value.dtype) @ value
    out: Tensor = attention.proj(mixed.transpose(1, 2).reshape(batch, count, width))
    return out


def _rotation(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [N, HEAD] of the tokens' rotary angles."""
    x, y = (centres(rows, columns, device) - 0.5).unbind(1)
    frequencies = rope_frequencies().to(device)
    angles = torch.cat([y[:, None] * frequencies, x[:, None] * frequencies], dim=1)
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos(), angles.sin()


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    turned = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
    return (states * cos + turned * sin).to(states.dtype)
