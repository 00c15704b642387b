"""Multi-grained prompts: one sentence per identity for the whole person and for every part (Sec. 3 of the method)."""

from collections.abc import Sequence

import torch
from open_clip.tokenizer import tokenize
from torch import Tensor, nn

from shared.schemas import PART_WORDS

CONTEXT_TOKENS = 4  # learnable vectors per prompt
_FIRST_CONTEXT = 5  # their first position: after the start token and "a photo of a"


def prompt_templates(parts: Sequence[str]) -> list[str]:
    """The 1 + R sentences, the whole person first; every `*` stands for one learnable vector."""
    stars = " ".join("*" * CONTEXT_TOKENS)
    words = [PART_WORDS.get(part, part.replace("_", " ")) for part in parts]
    return [f"A photo of a {stars} {owner}person" for owner in ("", *(f"{word} of a " for word in words))]


class Prompts(nn.Module):
    """Learnable context vectors in fixed sentences.

    The vocabulary's embedding is frozen and only the sentences' words are ever looked up in it, so the looked-up
    rows are kept and the table is not. Positions behind the longest sentence's end are dropped: the text
    transformer is causal and nothing reads them.

    Args:
        token_embedding: CLIP's table (vocabulary, W).
        parts: names of the R parts.
        num_identities: K.
        context_length: positions of the text encoder.
    """

    template_embeddings: Tensor  # (1 + R, T, W)
    ends: Tensor  # (1 + R,) int64

    def __init__(self, token_embedding: Tensor, parts: Sequence[str], num_identities: int, context_length: int) -> None:
        super().__init__()
        tokens = tokenize(prompt_templates(parts), context_length=context_length)  # (1 + R, context_length)
        ends = tokens.argmax(dim=1)  # the end-of-text token has the largest id
        tokens = tokens[:, : int(ends.max()) + 1]
        self.register_buffer("template_embeddings", token_embedding.detach()[tokens].clone())
        self.register_buffer("ends", ends)
        contexts = torch.empty(num_identities, len(tokens), CONTEXT_TOKENS, token_embedding.shape[1])
        self.contexts = nn.Parameter(nn.init.normal_(contexts, std=0.002))

    def forward(self, identities: Tensor) -> Tensor:
        """identities (n,) int64 in 0..K-1 -> embedded prompts (n, 1 + R, T, W), without positions."""
        words = self.template_embeddings.expand(len(identities), -1, -1, -1)
        before, after = words[:, :, :_FIRST_CONTEXT], words[:, :, _FIRST_CONTEXT + CONTEXT_TOKENS :]
        return torch.cat([before, self.contexts[identities].to(before.dtype), after], dim=2)
