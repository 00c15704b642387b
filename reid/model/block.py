"""One pre-norm transformer block of CLIP on open_clip's weights, computing only the outputs that are needed."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def run_block(
    block: Any, tokens: Tensor, *, queries: Tensor | None = None, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Run an open_clip ResidualAttentionBlock.

    Args:
        block: the block; its modules are used, its forward is not: it has neither batched masks nor `queries`.
        tokens: (B, N, D), all tokens: the keys and values.
        queries: (B, M, D), the tokens to compute the output of, e.g. in the last block; None: all tokens.
        mask: bool, broadcastable to (B, heads, M, N), True where a query may attend to a key; None: everywhere.
        causal: token i attends to tokens 0..i only; not together with `mask` or `queries`.
    Returns:
        (B, M, D), or (B, N, D) without `queries`.
    """
    attention = block.attn
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, tokens.shape[-1]
    normed = block.ln_1(tokens)
    if queries is None:
        residual = tokens
        q, keys, values = F.linear(normed, weight, bias).chunk(3, dim=-1)
    else:
        residual = queries
        q = F.linear(block.ln_1(queries), weight[:width], bias[:width])
        keys, values = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    heads = attention.num_heads
    mixed = F.scaled_dot_product_attention(
        split_heads(q, heads), split_heads(keys, heads), split_heads(values, heads), attn_mask=mask, is_causal=causal
    )
    hidden: Tensor = residual + block.ls_1(attention.out_proj(mixed.transpose(1, 2).flatten(2)))
    output: Tensor = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
    return output


def split_heads(rows: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, heads, N, D / heads)."""
    return rows.view(*rows.shape[:-1], heads, -1).transpose(1, 2)
