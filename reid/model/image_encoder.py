"""CLIP's image encoder with part tokens and adaptively masked attention (Sec. 2 of the method, AM-MSA)."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reid.data.part_masks import PatchGrid
from reid.model.block import run_block, split_heads


class ImageOutput(NamedTuple):
    """What the image encoder gives for B images, R parts, L patches.

    features: (B, (1 + R) * E) float32, class token first, then the parts; not normalised.
    mask_logits: (layers, B, R, L) float32, the residual logits of every block's mask; None when masks were given
        or there are no parts.
    """

    features: Tensor
    mask_logits: Tensor | None


class MaskedEncoder(nn.Module):
    """The token sequence is [class, R part tokens, L patches].

    Args:
        visual: open_clip's VisionTransformer; its modules are taken over, its weights are not copied.
        grid: the patches of our input; CLIP's position table is resized to it.
        num_parts: R; with 0 this is the plain vision transformer.
        mask_heads: attention heads of the mask predictors.
        mask_temperature: tau of p = sigmoid(logits / tau).
        gate_threshold: a patch is visible for a part where p is strictly above it.
        soft_gate: m of the soft gate, which adds (2p - 1) * m to the attention logits; None: the hard gate.
        additive: give the attention the hard gate as 0 and -inf instead of true and false; which kernel is faster
            depends on the device.
    """

    def __init__(
        self,
        visual: Any,
        grid: PatchGrid,
        *,
        num_parts: int,
        mask_heads: int,
        mask_temperature: float,
        gate_threshold: float,
        soft_gate: float | None = None,
        additive: bool = False,
    ) -> None:
        super().__init__()
        self.num_parts = num_parts
        self.mask_temperature = mask_temperature
        self.gate_threshold = gate_threshold
        self.soft_gate = soft_gate
        self.additive = additive
        width = visual.conv1.out_channels
        self.conv1 = visual.conv1
        self.conv1.stride = (grid.stride, grid.stride)
        self.class_embedding = visual.class_embedding
        table = resized_positions(visual.positional_embedding.detach(), visual.grid_size, (grid.rows, grid.columns))
        self.positional_embedding = nn.Parameter(torch.cat([table[:1], table[:1].expand(num_parts, -1), table[1:]]))
        self.ln_pre, self.blocks = visual.ln_pre, visual.transformer.resblocks
        self.ln_post, self.proj = visual.ln_post, visual.proj
        if num_parts:
            self.part_tokens = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_parts, width), std=0.02))
        predictors = [MaskPredictor(width, grid.count, mask_heads) for _ in self.blocks] if num_parts else []
        self.mask_predictors = nn.ModuleList(predictors)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> ImageOutput:
        """Encode images under given masks, or under masks predicted block by block.

        Args:
            images: (B, 3, height, width) float, normalised.
            visible: (B, R, L) bool, used at every block in place of the predicted masks; for the soft gate p is 0 or 1.
        """
        tokens, leading = self._embed(images), 1 + self.num_parts
        allowed = self._mask(visible) if self.num_parts and visible is not None else None
        layers: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if self.num_parts and visible is None:
                layers.append(self._mask_logits(index, tokens, layers))
                allowed = self._mask(self._gate(layers[-1]))
            if index < len(self.blocks) - 1:
                tokens = run_block(block, tokens, mask=allowed)
            else:  # nothing reads the last block's patches
                mask = None if allowed is None else allowed[:, :, :leading]
                tokens = run_block(block, tokens, queries=tokens[:, :leading], mask=mask)
        features = self.ln_post(tokens) @ self.proj  # (B, 1 + R, E)
        return ImageOutput(features.flatten(1).float(), torch.stack(layers) if layers else None)

    def part_attention(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """For looking at: the predicted masks of every block, and where the part tokens look in the last one.

        Args:
            images: (B, 3, height, width) float, normalised.
        Returns:
            visible (blocks, B, R, L) bool, and attention (B, R, L) in 0..1: the share of a part token's attention that
            goes to each patch, mean over the heads; the rest of it goes to the class token and itself.
        """
        block, normed = self.blocks[-1], []
        hook = block.ln_1.register_forward_hook(lambda module, inputs, output: normed.append(output))
        try:
            logits = self(images).mask_logits
        finally:
            hook.remove()
        if logits is None:
            empty = images.new_zeros(len(self.blocks), len(images), 0, 0)
            return empty.bool(), empty[0]
        tokens = next(found for found in normed if found.shape[1] > 1 + self.num_parts)  # not only the queries
        weight, bias, width = block.attn.in_proj_weight, block.attn.in_proj_bias, tokens.shape[-1]
        parts = slice(1, 1 + self.num_parts)
        queries = split_heads(F.linear(tokens[:, parts], weight[:width], bias[:width]), block.attn.num_heads)
        keys = split_heads(F.linear(tokens, weight[width : 2 * width], bias[width : 2 * width]), block.attn.num_heads)
        scores = queries @ keys.transpose(2, 3) / keys.shape[-1] ** 0.5  # (B, heads, R, N)
        mask = self._mask(self._gate(logits[-1]))[:, :, parts]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        attention = scores.float().softmax(dim=-1).mean(dim=1)[:, :, 1 + self.num_parts :]
        return self.visible_patches(logits), attention

    def _embed(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> tokens (B, 1 + R + L, D)."""
        patches = self.conv1(images).flatten(2).transpose(1, 2)  # (B, L, D)
        leading = self.class_embedding[None]
        if self.num_parts:
            leading = torch.cat([leading, self.part_tokens])
        leading = leading.to(patches.dtype).expand(images.shape[0], -1, -1)  # (B, 1 + R, D)
        tokens: Tensor = self.ln_pre(torch.cat([leading, patches], dim=1) + self.positional_embedding)
        return tokens

    def _mask_logits(self, index: int, tokens: Tensor, earlier: list[Tensor]) -> Tensor:
        """Residual over layers: this block's z plus the logits before it. (B, R, L)"""
        parts, patches = tokens[:, 1 : 1 + self.num_parts], tokens[:, 1 + self.num_parts :]
        logits: Tensor = self.mask_predictors[index](parts, patches).float()  # half precision is too coarse for sums
        return logits + earlier[-1] if earlier else logits

    def mask_probs(self, logits: Tensor) -> Tensor:
        """Mask logits of any shape -> p = sigmoid(logits / tau) in 0..1."""
        return torch.sigmoid(logits / self.mask_temperature)

    def visible_patches(self, logits: Tensor) -> Tensor:
        """Mask logits of any shape -> bool, where p is above the gate's threshold; without gradient."""
        return self.mask_probs(logits) > self.gate_threshold

    def _gate(self, logits: Tensor) -> Tensor:
        """(B, R, L): p for the soft gate, bool for the hard one."""
        return self.visible_patches(logits) if self.soft_gate is None else self.mask_probs(logits)

    def _mask(self, gate: Tensor) -> Tensor:
        """A gate (B, R, L), bool or p in 0..1, as the mask of a block's attention."""
        if self.soft_gate is not None:
            return attention_bias((2.0 * gate - 1) * self.soft_gate)
        mask = attention_mask(gate)
        if not self.additive:
            return mask
        device = gate.device.type
        half = torch.is_autocast_enabled(device)
        return additive_mask(mask, torch.get_autocast_dtype(device) if half else self.proj.dtype)


def attention_mask(visible: Tensor) -> Tensor:
    """Which token attends to which (table in Sec. 2 of the method).

    The class token and the patches see each other freely; a part sees the class token, itself and its visible
    patches; a patch sees the parts it is visible for.

    Args:
        visible: (B, R, L) bool.
    Returns:
        (B, 1, N, N) bool, N = 1 + R + L, True where row may attend to column; one mask for all heads.
    """
    batch, parts, patches = visible.shape
    free = visible.new_ones(1, 1, 1)  # concatenated, not assigned: exported, an assignment is a slow scatter
    own = torch.eye(parts, dtype=torch.bool, device=visible.device)
    class_row = free.expand(batch, 1, 1 + parts + patches)
    part_rows = torch.cat([free.expand(batch, parts, 1), own.expand(batch, -1, -1), visible], dim=2)
    patch_rows = [free.expand(batch, patches, 1), visible.transpose(1, 2), free.expand(batch, patches, patches)]
    return torch.cat([class_row, part_rows, torch.cat(patch_rows, dim=2)], dim=1)[:, None]


def additive_mask(mask: Tensor, dtype: torch.dtype, row: int | None = None) -> Tensor:
    """A bool mask (B, 1, N, N) as a term of the attention logits: 0 where true, -inf elsewhere.

    Args:
        row: length of a row in memory; by default on a GPU the next multiple of 8, without which the memory-efficient
            kernel copies it, else N.
    """
    count = mask.shape[-1]
    row = row or (-(-count // 8) * 8 if mask.is_cuda else count)
    storage = torch.zeros(*mask.shape[:-1], row, dtype=dtype, device=mask.device)
    return storage[..., :count].masked_fill_(~mask, -torch.inf)


def attention_bias(gate: Tensor) -> Tensor:
    """The same table with a soft gate, as an additive term of the attention logits.

    Args:
        gate: (B, R, L) float, added between a part and a patch in both directions.
    Returns:
        (B, 1, N, N) float: the gate, -inf between different parts, 0 elsewhere; with the gate's gradient.
    """
    batch, parts, patches = gate.shape
    same = torch.eye(parts, dtype=torch.bool, device=gate.device)
    own = torch.full((parts, parts), -torch.inf, dtype=gate.dtype, device=gate.device).masked_fill(same, 0)
    free = gate.new_zeros(batch, 1 + parts + patches, 1)
    part_rows = torch.cat([own.expand(batch, -1, -1), gate], dim=2)  # (B, R, R + L)
    patch_rows = torch.cat([gate.transpose(1, 2), gate.new_zeros(batch, patches, patches)], dim=2)  # (B, L, R + L)
    class_row = gate.new_zeros(batch, 1, parts + patches)
    return torch.cat([free, torch.cat([class_row, part_rows, patch_rows], dim=1)], dim=2)[:, None]


def resized_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize the patch rows of a position table (1 + old_h * old_w, D) bilinearly -> (1 + new_h * new_w, D)."""
    patches = table[1:].T.reshape(1, -1, *old)  # (1, D, old_h, old_w)
    patches = F.interpolate(patches, size=new, mode="bilinear", align_corners=False, antialias=False)
    return torch.cat([table[:1], patches.flatten(2)[0].T])


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP (Radford et al. 2021)."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * torch.sigmoid(1.702 * inputs)


class MaskPredictor(nn.Module):
    """Cross-attention of the part tokens to the patch tokens of one block, then an MLP to one logit per patch.

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
        """parts (B, R, D) and patches (B, L, D), the block's input -> this layer's term z of the logits (B, R, L)."""
        if torch.is_grad_enabled():  # recomputing the normalised patches in the backward pass is cheaper than storing
            attended = checkpoint(self._attend, parts, patches, use_reentrant=False, preserve_rng_state=False) + parts
        else:
            attended = self._attend(parts, patches) + parts  # (B, R, D)
        logits: Tensor = self.mlp(self.ln_mlp(attended))
        return logits

    def _attend(self, parts: Tensor, patches: Tensor) -> Tensor:
        """Cross-attention of the normalised tokens, (B, R, D) x (B, L, D) -> (B, R, D).

        With few queries it is cheaper to apply the key and value projections on their side:
        q (W_k x)^T = (q W_k) x^T and a (W_v x) = W_v (a x), so no (B, L, D) keys and values are made.
        """
        queries, patches = self.ln_queries(parts), self.ln_patches(patches)
        batch, count, width = queries.shape
        heads, depth = self.heads, width // self.heads
        queries = self.to_q(queries).view(batch, count, heads, depth)
        queries = torch.einsum("brhd,hdw->bhrw", queries, self.to_k.weight.view(heads, depth, width)).flatten(1, 2)
        scores = queries @ patches.transpose(1, 2) * self.scale  # (B, heads * R, L)
        pooled = (scores.softmax(dim=-1) @ patches).view(batch, heads, count, width)
        values = torch.einsum("bhrw,hdw->brhd", pooled, self.to_v.weight.view(heads, depth, width))
        mixed: Tensor = self.to_out(values.flatten(2))
        return mixed
