import socket

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from reid.model.muva import build_model
from reid.model.text_encoder import prompt_templates
from shared.errors import ConfigError
from shared.schemas import PARTS

PLACES = slice(5, 9)  # positions of the learnable vectors


def plain_clip(config, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.CLIP(**config.architecture).eval()


def slow_text(clip, contexts, templates):
    """All 77 positions through open_clip's own transformer: contexts [1 + R, 4, W] -> (1 + R) * E."""
    features = []
    for template, vectors in zip(templates, contexts, strict=True):
        tokens = open_clip.tokenizer.tokenize([template])  # (1, 77)
        embedded = clip.token_embedding(tokens)[0].clone()
        embedded[PLACES] = vectors
        hidden = clip.transformer((embedded + clip.positional_embedding)[None], attn_mask=clip.attn_mask)
        end = max(range(77), key=lambda place: int(tokens[0, place]))
        features.append(clip.ln_final(hidden)[0, end] @ clip.text_projection)
    return torch.cat(features)


def test_templates_are_the_papers():
    assert prompt_templates(PARTS) == [
        "A photo of a * * * * person",
        "A photo of a * * * * head of a person",
        "A photo of a * * * * upper body of a person",
        "A photo of a * * * * legs of a person",
    ]
    assert prompt_templates(()) == ["A photo of a * * * * person"]
    assert prompt_templates(("left_arm",))[1] == "A photo of a * * * * left arm of a person"


def test_the_learnable_vectors_stand_at_positions_5_to_8():
    tokenizer = SimpleTokenizer()
    star = tokenizer.encode("*")
    assert len(star) == 1
    for template in prompt_templates(PARTS):
        tokens = tokenizer([template])[0]
        assert (tokens == star[0]).nonzero().flatten().tolist() == [5, 6, 7, 8]


def test_the_vocabulary_needs_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the tokenizer went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert SimpleTokenizer().encode("a person") == [320, 2533]


@pytest.mark.parametrize("parts", [(), PARTS, ("legs",)])
def test_features_equal_open_clips_at_the_full_77_positions(model_config, parts):
    config = model_config(parts=parts)
    model = build_model(config, 4, seed=7)
    model.prompts.contexts.data.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    clip = plain_clip(config, seed=7)
    identities = torch.tensor([2, 0, 2])
    text = model.encode_text(identities)
    assert text.shape == (3, (1 + len(parts)) * 12) and text.dtype == torch.float32
    contexts = model.prompts.contexts.detach().clone().requires_grad_()
    templates = prompt_templates(parts)
    slow = torch.stack([slow_text(clip, contexts[identity], templates) for identity in identities.tolist()])
    torch.testing.assert_close(text, slow, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(text)
    (gradient,) = torch.autograd.grad((text * weights).sum(), model.prompts.contexts)
    (slow_gradient,) = torch.autograd.grad((slow * weights).sum(), contexts)
    torch.testing.assert_close(gradient, slow_gradient, rtol=1e-3, atol=1e-5)
    assert gradient[0].any() and gradient[2].any() and not gradient[1].any() and not gradient[3].any()


@torch.no_grad()
def test_domain_contexts_end_the_prompts_of_their_data_sets(model_config):
    config = model_config(domain_contexts={"alpha": "in a street", "gamma": "indoors, from above"})
    datasets = ["alpha", "beta", "gamma", "alpha"]
    model = build_model(config, 4, seed=7, datasets=datasets)
    text = model.encode_text(torch.arange(4))
    clip, contexts = plain_clip(config, seed=7), model.prompts.contexts
    for identity, words in enumerate([", in a street", "", ", indoors, from above", ", in a street"]):
        slow = slow_text(clip, contexts[identity], [line + words for line in prompt_templates(PARTS)])
        torch.testing.assert_close(text[identity], slow, rtol=1e-4, atol=1e-5)
    plain = build_model(model_config(), 4, seed=7).encode_text(torch.arange(4))
    torch.testing.assert_close(text[1], plain[1], rtol=1e-4, atol=1e-5)
    assert (text[0] - plain[0]).abs().max() > 1e-3
    loaded = build_model(config, 4, seed=8, load_weights=False)  # the state says which identity is of which data set
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded.encode_text(torch.arange(4)), text)


@torch.no_grad()
def test_part_agnostic_prompts_are_one_sentence_with_vectors_for_each_part(model_config):
    config = model_config(part_agnostic_prompts=True)
    model = build_model(config, 2, seed=7)
    text = model.encode_text(torch.tensor([1]))[0]
    slow = slow_text(plain_clip(config, seed=7), model.prompts.contexts[1], ["A photo of a * * * *"] * 4)
    torch.testing.assert_close(text, slow, rtol=1e-4, atol=1e-5)
    model.prompts.contexts[:] = 0
    whole, *parts = model.encode_text(torch.tensor([1]))[0].view(4, -1)
    other = build_model(model_config(), 2, seed=7)
    other.prompts.contexts[:] = 0
    assert all(torch.allclose(part, whole, atol=1e-6) for part in parts)
    assert not torch.allclose(other.encode_text(torch.tensor([1]))[0].view(4, -1)[1], whole, atol=1e-3)


def test_contexts_are_one_set_per_identity_and_granularity(model_config):
    model = build_model(model_config(), 50, seed=0)
    contexts = model.prompts.contexts
    assert contexts.shape == (50, 4, 4, 16)
    assert abs(contexts.std().item() - 0.002) < 1e-4


def test_the_vocabulary_table_is_not_kept(model_config):
    state = build_model(model_config(), 3, seed=0).state_dict()
    assert state["prompts.template_embeddings"].shape == (4, 15, 16)
    assert max(tensor.numel() for tensor in state.values()) < 49408


def test_prompt_templates_are_the_methods() -> None:
    stars = "A photo of a * * * *"
    assert prompt_templates(("head", "upper_body")) == [
        f"{stars} person",
        f"{stars} head of a person",
        f"{stars} upper body of a person",
    ]
    assert (
        prompt_templates(("head",), part_agnostic=True, domain_context="a_rainy street")
        == [f"{stars}, a rainy street"] * 2
    )


@pytest.mark.parametrize("blank", ["_", " ", "__ _"])
def test_a_context_of_blanks_is_none(blank):
    assert prompt_templates(("head",), domain_context=blank) == prompt_templates(("head",))
    assert prompt_templates((), domain_context=f"{blank}in_a{blank}street_")[0].endswith("person, in a street")


def test_contexts_that_cannot_be_read_to_their_end_are_refused(model_config):
    config = model_config(domain_contexts={"a": "word " * 61})  # makes 77
    build_model(config, 2, seed=0, datasets=["a", "b"])
    with pytest.raises(ConfigError, match="sentences of 80 tokens, of which 77"):
        build_model(model_config(domain_contexts={"a": "word " * 64}), 2, seed=0, datasets=["a", "b"])


def test_a_checkpoint_with_longer_sentences_is_read(model_config):
    config = model_config(domain_contexts={"a": "in a long and winding street"})
    before = build_model(config, 2, seed=0, datasets=["a", "b"])
    after = build_model(model_config(domain_contexts={"a": "indoors"}), 2, seed=1, datasets=["a", "b"])
    after.load_state_dict(before.state_dict())
    assert torch.equal(after.encode_text(torch.arange(2)), before.encode_text(torch.arange(2)))
