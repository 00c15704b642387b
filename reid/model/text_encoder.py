"""CLIP's text transformer on embedded sentences, computing only what the feature depends on."""

from typing import Any

import torch
from torch import Tensor, nn

from reid.model.block import run_block


class TextEncoder(nn.Module):
    """The text tower without its token embedding.

    Args:
        clip: open_clip's CLIP; its text modules are taken over, their weights are not copied.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.positional_embedding = clip.positional_embedding
        self.blocks = clip.transformer.resblocks
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection

    def forward(self, embedded: Tensor, ends: Tensor) -> Tensor:
        """Encode sentences.

        Args:
            embedded: (M, T, W) token embeddings; T may be below the context length, since attention is causal.
            ends: (M,) int64, position of each sentence's end-of-text token.
        Returns:
            (M, E) features at the end-of-text positions, not normalised.
        """
        count = embedded.shape[1]
        hidden = embedded + self.positional_embedding[:count]
        *earlier, last = self.blocks
        for block in earlier:
            hidden = run_block(block, hidden, causal=True)
        until_end = torch.arange(count, device=ends.device) <= ends[:, None]  # (M, T)
        at_end = hidden[torch.arange(len(ends), device=ends.device), ends][:, None]  # (M, 1, W)
        at_end = run_block(last, hidden, kept=at_end, mask=until_end[:, None, None])[:, 0]
        features: Tensor = self.ln_final(at_end) @ self.text_projection
        return features
