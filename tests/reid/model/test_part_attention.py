"""Where part tokens look: against a block computed with PyTorch's own attention, and what its mask hides gets none."""

import pytest
import torch
from torch import nn

from reid.config import load_config
from reid.model.muva import build_model


@pytest.mark.parametrize(
    "overrides", [[], ["model.soft_gate=2.0"], ["model.attention_mask=additive"], ["model.parts=[]"]]
)
def test_attention_is_that_of_the_last_block(overrides: list[str]) -> None:
    config = load_config("tiny", overrides).model
    model = build_model(config, 4, seed=0, load_weights=False).eval()
    encoder = model.image_encoder
    images = torch.randn(3, 3, model.grid.image_height, model.grid.image_width)
    with torch.no_grad():
        visible, attention = encoder.part_attention(images)
        logits = encoder(images).mask_logits
    parts = len(config.parts)
    assert visible.shape == (len(encoder.blocks), 3, parts, model.grid.count if parts else 0)
    if not parts:
        return
    assert torch.equal(visible, encoder.visible_patches(logits))
    seen: list[torch.Tensor] = []
    hook = encoder.blocks[-1].ln_1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        encoder(images)
    hook.remove()
    tokens = max(seen, key=lambda found: found.shape[1])
    block: nn.MultiheadAttention = encoder.blocks[-1].attn
    mask = encoder._mask(encoder._gate(logits[-1])).expand(-1, block.num_heads, -1, -1).flatten(0, 1)
    forbidden = ~mask if mask.dtype == torch.bool else mask
    with torch.no_grad():
        _, weights = (
            block(tokens.transpose(0, 1), tokens.transpose(0, 1), tokens.transpose(0, 1), attn_mask=forbidden)
            if not block.batch_first
            else block(tokens, tokens, tokens, attn_mask=forbidden)
        )
    expected = weights[:, 1 : 1 + parts, 1 + parts :]
    torch.testing.assert_close(attention, expected, atol=1e-5, rtol=1e-4)
    if mask.dtype == torch.bool:
        assert not attention[~visible[-1]].any()
