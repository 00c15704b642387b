"""Checkpoints of the method's public reference implementation: its parameter names to this project's and back."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from reid.config import ModelConfig
from reid.model.muva import Muva, build_model
from shared.errors import DgreidError, UsageError

# Prefixes of names, reference -> this project; the prefixes of each side are disjoint.
_PREFIXES = {
    "image_encoder.transformer.resblocks.": "image_encoder.blocks.",
    "image_encoder.class_embedding": "image_encoder.class_embedding",
    "image_encoder.positional_embedding": "image_encoder.positional_embedding",
    "image_encoder.conv1.": "image_encoder.conv1.",
    "image_encoder.ln_pre.": "image_encoder.ln_pre.",
    "image_encoder.ln_post.": "image_encoder.ln_post.",
    "image_encoder.proj": "image_encoder.proj",
    "local_token": "image_encoder.part_tokens",
    "residual_mask_predictor.blocks.": "image_encoder.mask_predictors.",
    "prompt_learner.learnable_ctx": "prompts.contexts",
    "text_encoder.transformer.resblocks.": "text_encoder.blocks.",
    "text_encoder.positional_embedding": "text_encoder.positional_embedding",
    "text_encoder.ln_final.": "text_encoder.ln_final.",
    "text_encoder.text_projection": "text_encoder.text_projection",
    "bnneck.": "bnneck.",
    "fc.": "classifier.",
}
_PREDICTOR_PARTS = {
    "cross_attn.to_q": "to_q",
    "cross_attn.to_k": "to_k",
    "cross_attn.to_v": "to_v",
    "cross_attn.to_out.0": "to_out",
    "ln_attn1": "ln_queries",
    "ln_attn2": "ln_patches",
    "ln_mlp": "ln_mlp",
    "mlp.0": "mlp.0",
    "mlp.2": "mlp.2",
}
# Not in the reference's state: made from the base CLIP's vocabulary.
_FROM_BASE = ("prompts.template_embeddings", "prompts.ends", "prompts.domains")


def from_reference(
    state: Mapping[str, Tensor], config: ModelConfig | None = None, datasets: Sequence[str] | None = None
) -> Muva:
    """Build our model with the reference's weights.

    Args:
        state: its state_dict, e.g. from `reid.model.checkpoint.read_tensors`; K is read from it.
        config: what it was trained with (heads, stride and image size cannot be read from the state); default: the
            paper's. The base CLIP's weights are needed for the words of the prompts, which the state does not hold.
        datasets: the data set of each of the K identities, in the order of the classifier's rows; needed with
            `config.domain_contexts`, since the state does not say which identity had which context.
    Raises:
        UsageError: `datasets` is missing or not of K identities, or `domain_contexts` names another data set.
        DgreidError: names that are missing or unknown, or shapes that do not fit; all of them are listed.
        ConfigError: the base CLIP is not there.
    """
    contexts = state.get("prompt_learner.learnable_ctx")
    if contexts is None:
        raise _misfit(["missing prompt_learner.learnable_ctx"])
    config = config or ModelConfig()
    if datasets is None and config.domain_contexts:
        raise UsageError(
            "domain_contexts needs the data set of every identity", fix="give datasets, one name for each identity"
        )
    if unused := sorted(set(config.domain_contexts) - set(datasets or config.domain_contexts)):
        raise UsageError(
            f"domain_contexts names {', '.join(unused)}, which no identity is of",
            fix=f"name only {', '.join(sorted(set(datasets or ())))}, as `datasets` spells them",
        )
    if datasets is not None and len(datasets) != len(contexts):
        raise UsageError(
            f"{len(datasets)} data set names for {len(contexts)} identities", fix="give one name for each identity"
        )
    model = build_model(config, len(contexts), seed=0, datasets=datasets)
    expected = to_reference(model)
    problems = [f"missing {name}" for name in expected.keys() - state.keys()]
    problems += [f"unknown {name}" for name in state.keys() - expected.keys()]
    problems += [
        f"{name} is {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise _misfit(sorted(problems))
    own = model.state_dict()
    model.load_state_dict({ours: own[ours] if ours in _FROM_BASE else state[_their_name(ours)] for ours in own})
    return model


def to_reference(model: Muva) -> dict[str, Tensor]:
    """The model's state under the reference's names; the inverse of `from_reference`."""
    return {_their_name(name): tensor for name, tensor in model.state_dict().items() if name not in _FROM_BASE}


def _their_name(ours: str) -> str:
    theirs, prefix = next((their, our) for their, our in _PREFIXES.items() if ours.startswith(our))
    rest = ours.removeprefix(prefix)
    if theirs == "residual_mask_predictor.blocks.":
        index, _, rest = rest.partition(".")
        part, _, kind = rest.rpartition(".")
        their_part = next(their for their, our in _PREDICTOR_PARTS.items() if our == part)
        rest = f"{index}.{their_part}.{kind}"
    return theirs + rest


def _misfit(problems: list[str]) -> DgreidError:
    return DgreidError(
        f"this is not a state of the reference implementation for this configuration: {'; '.join(problems)}",
        fix="give the configuration that it was trained with: parts, stride, image size, backbone",
    )
