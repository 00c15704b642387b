"""Multi-grained prompts: one sentence per identity for the whole person and for every part (Sec. 3 of the method)."""

from collections.abc import Sequence

import torch
from open_clip.tokenizer import tokenize
from torch import Tensor, nn

from reid.config import ModelConfig
from shared.schemas import PART_WORDS

CONTEXT_TOKENS = 4  # learnable vectors per prompt
_FIRST_CONTEXT = 5  # their first position: after the start token and "a photo of a"


def prompt_templates(parts: Sequence[str], *, part_agnostic: bool = False, domain_context: str = "") -> list[str]:
    """The 1 + R sentences, the whole person first; every `*` stands for one learnable vector.

    Args:
        part_agnostic: the sentence of the whole person for the parts too.
        domain_context: words at the end of every sentence, after a comma.
    """
    stars = " ".join("*" * CONTEXT_TOKENS)
    words = [PART_WORDS.get(part, part.replace("_", " ")) for part in parts]
    owners = ["" if part_agnostic else f"{word} of a " for word in words]
    suffix = f", {domain_context}" if domain_context else ""
    return [f"A photo of a {stars} {owner}person{suffix}" for owner in ("", *owners)]


class Prompts(nn.Module):
    """Learnable context vectors in fixed sentences.

    The vocabulary's embedding is frozen and only the sentences' words are ever looked up in it, so the looked-up
    rows are kept and the table is not. Positions behind the longest sentence's end are dropped: the text
    transformer is causal and nothing reads them.

    Args:
        token_embedding: CLIP's table (vocabulary, W).
        config: its parts and how their sentences are worded.
        datasets: the data set of each of the K identities, for the domain contexts.
        context_length: positions of the text encoder.
    """

    template_embeddings: Tensor  # (S * (1 + R), T, W), S different domain contexts
    ends: Tensor  # (S * (1 + R),) int64
    domains: Tensor | None  # (K,) int64 in 0..S-1, which context an identity has; None where S = 1

    def __init__(
        self, token_embedding: Tensor, config: ModelConfig, datasets: Sequence[str], context_length: int
    ) -> None:
        super().__init__()
        words = ["", *sorted(set(config.domain_contexts.values()))]  # "": data sets without a context
        templates = [
            prompt_templates(config.parts, part_agnostic=config.part_agnostic_prompts, domain_context=context)
            for context in words
        ]
        tokens = tokenize([line for lines in templates for line in lines], context_length=context_length)
        ends = tokens.argmax(dim=1)  # the end-of-text token has the largest id
        tokens = tokens[:, : int(ends.max()) + 1]
        self.granularities = 1 + len(config.parts)
        self.register_buffer("template_embeddings", token_embedding.detach()[tokens].clone())
        self.register_buffer("ends", ends)
        places = [words.index(config.domain_contexts.get(name, "")) for name in datasets]
        self.register_buffer("domains", torch.tensor(places) if len(words) > 1 else None)
        contexts = torch.empty(len(datasets), self.granularities, CONTEXT_TOKENS, token_embedding.shape[1])
        self.contexts = nn.Parameter(nn.init.normal_(contexts, std=0.002))

    def forward(self, identities: Tensor) -> tuple[Tensor, Tensor]:
        """identities (n,) int64 in 0..K-1 -> embedded prompts (n, 1 + R, T, W), without positions, and the positions
        (n, 1 + R) int64 of their end-of-text tokens."""
        domains = torch.zeros_like(identities) if self.domains is None else self.domains[identities]
        words = self.template_embeddings.view(-1, self.granularities, *self.template_embeddings.shape[1:])[domains]
        ends = self.ends.view(-1, self.granularities)[domains]
        before, after = words[:, :, :_FIRST_CONTEXT], words[:, :, _FIRST_CONTEXT + CONTEXT_TOKENS :]
        return torch.cat([before, self.contexts[identities].to(before.dtype), after], dim=2), ends
