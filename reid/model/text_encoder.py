"""The text side: learnable multi-grained prompts and CLIP's text transformer (Sec. 3 of the method)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from open_clip.tokenizer import tokenize
from torch import Tensor, nn

from reid.config import ModelConfig
from reid.model.block import run_block
from shared.errors import ConfigError
from shared.parts import PART_WORDS

CONTEXT_TOKENS = 4  # learnable vectors per prompt
_FIRST_CONTEXT = 5  # their first position: after the start token and "a photo of a"


def prompt_templates(parts: Sequence[str], *, part_agnostic: bool = False, domain_context: str = "") -> list[str]:
    """The 1 + R sentences, the whole person first; every `*` stands for one learnable vector.

    Args:
        part_agnostic: "A photo of a * * * *" for the whole person and every part.
        domain_context: words at the end of every sentence, after a comma; underscores in them become blanks. Without
            a noun CLIP's tokenizer joins the last `*` and the comma into one token: the vector stands for both.
    """
    context = " ".join(domain_context.replace("_", " ").split())
    words = [PART_WORDS.get(part, part.replace("_", " ")) for part in parts]
    nouns = ["person", *(f"{word} of a person" for word in words)]
    endings = [""] * len(nouns) if part_agnostic else [f" {noun}" for noun in nouns]
    suffix = f", {context}" if context else ""
    return [f"A photo of a {' '.join('*' * CONTEXT_TOKENS)}{ending}{suffix}" for ending in endings]


class Prompts(nn.Module):
    """Learnable context vectors in fixed sentences.

    The vocabulary's embedding is frozen and only the sentences' words are looked up in it, so those rows are stored
    and the table is not. Positions after the longest sentence's end are dropped: the text transformer is causal.

    Args:
        token_embedding: CLIP's table (vocabulary, W).
        config: its parts and how their sentences are worded.
        datasets: the data set of each of the K identities, for the domain contexts.
        context_length: positions of the text encoder.
    Raises:
        ConfigError: a sentence with its domain context has more tokens than that.
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
        tokens = tokenize([line for lines in templates for line in lines], context_length=10 * context_length)
        ends = tokens.argmax(dim=1)  # the end-of-text token has the largest id
        if (needed := int(ends.max()) + 1) > context_length:  # a shorter table would have cut them off
            raise ConfigError(
                f"model.domain_contexts makes sentences of {needed} tokens, of which {context_length} can be read",
                fix="use fewer words",
            )
        tokens = tokens[:, :needed]
        self.granularities = 1 + len(config.parts)
        self.register_buffer("template_embeddings", token_embedding.detach()[tokens].clone())
        self.register_buffer("ends", ends)
        places = [words.index(config.domain_contexts.get(name, "")) for name in datasets]
        self.register_buffer("domains", torch.tensor(places) if len(words) > 1 else None)
        contexts = torch.empty(len(datasets), self.granularities, CONTEXT_TOKENS, token_embedding.shape[1])
        self.contexts = nn.Parameter(nn.init.normal_(contexts, std=0.002))

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        for name in ("template_embeddings", "ends"):  # sentences of a checkpoint may be of another length than today's
            if (stored := state_dict.get(prefix + name)) is not None:
                setattr(self, name, getattr(self, name).new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, identities: Tensor) -> tuple[Tensor, Tensor]:
        """identities (n,) int64 in 0..K-1 -> embedded prompts (n, 1 + R, T, W), without positions, and the positions
        (n, 1 + R) int64 of their end-of-text tokens."""
        domains = torch.zeros_like(identities) if self.domains is None else self.domains[identities]
        words = self.template_embeddings.view(-1, self.granularities, *self.template_embeddings.shape[1:])[domains]
        ends = self.ends.view(-1, self.granularities)[domains]
        before, after = words[:, :, :_FIRST_CONTEXT], words[:, :, _FIRST_CONTEXT + CONTEXT_TOKENS :]
        return torch.cat([before, self.contexts[identities].to(before.dtype), after], dim=2), ends


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
        at_end = run_block(last, hidden, queries=at_end, mask=until_end[:, None, None])[:, 0]
        features: Tensor = self.ln_final(at_end) @ self.text_projection
        return features
