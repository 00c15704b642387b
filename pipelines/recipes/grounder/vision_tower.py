"""The vision tower's forward pass for a batch of images of one size.

transformers runs the tower image by image with variable lengths; images of one size need no such handling. Same
weights, same result.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.recipes.grounder.architecture import HEAD_DIM, PATCH, rope_frequencies

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the family's image processor
STD = (0.26862954, 0.26130258, 0.27577711)


def patches(pixels: Tensor) -> Tensor:
    """[B, H, W, 3] uint8 -> [B, rows * columns, 3 * PATCH * PATCH] normalised, in the processor's order."""
    batch, height, width, _ = pixels.shape
    cut = pixels.view(batch, height // PATCH, PATCH, width // PATCH, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
    values = cut.reshape(batch, -1, 3, PATCH * PATCH).float()
    mean, std = (torch.tensor(each, device=pixels.device)[:, None] for each in (MEAN, STD))
    return values.sub_(255 * mean).mul_(1 / (255 * std)).flatten(2)


def patch_centres(rows: int, columns: int, device: torch.device) -> Tensor:
    """[rows * columns, 2] x and y of the patch centres, in patches."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1) + 0.5


def encode_patches(visual: Any, patches: Tensor, rows: int, columns: int) -> Tensor:
    """Image tokens [B, N, TEXT_WIDTH] of patches [B, N, 3 * PATCH * PATCH]; N = rows * columns."""
    weight = visual.patch_embed.proj.weight.sum(dim=2).flatten(1)  # both frames of a still image are the same
    tokens = F.linear(patches, weight)
    cos, sin = _rotary_angles(rows, columns, patches.device)
    for block in visual.blocks:
        tokens = tokens + _attention(block.attn, _norm(block.norm1, tokens), cos, sin)
        inner, mlp = _norm(block.norm2, tokens), block.mlp
        tokens = tokens + mlp.down_proj(F.silu(mlp.gate_proj(inner)) * mlp.up_proj(inner))
    merged: Tensor = visual.merger.mlp(_norm(visual.merger.ln_q, tokens))
    return merged


def _norm(norm: Any, tokens: Tensor) -> Tensor:
    return F.rms_norm(tokens, (tokens.shape[-1],), norm.weight, 1e-6)


def _attention(attention: Any, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch, count, width = tokens.shape
    query, key, value = attention.qkv(tokens).view(batch, count, 3, -1, HEAD_DIM).permute(2, 0, 3, 1, 4)
    query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
    # the backward pass of torch's fused attention takes three times as long on a CPU
    logits = query @ key.transpose(2, 3) * HEAD_DIM**-0.5
    mixed = logits.softmax(dim=-1).to(value.dtype) @ value
    out: Tensor = attention.proj(mixed.transpose(1, 2).reshape(batch, count, width))
    return out


def _rotary_angles(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [N, HEAD_DIM] of the patches' rotary angles."""
    x, y = (patch_centres(rows, columns, device) - 0.5).unbind(1)
    frequencies = rope_frequencies().to(device)
    angles = torch.cat([y[:, None] * frequencies, x[:, None] * frequencies], dim=1)
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos(), angles.sin()


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    turned = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
    return (states * cos + turned * sin).to(states.dtype)
