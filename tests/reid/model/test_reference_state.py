import pytest
import torch

from reid.model.muva import build_model
from reid.model.reference_state import from_reference, to_reference
from shared.errors import DgreidError, UsageError


def documented_shapes(width, joint, text, identities, parts, patches, patch, layers, text_layers):
    """The table of names and shapes that the reference implementation is known by."""

    def block(prefix, size):
        return {
            f"{prefix}.attn.in_proj_weight": (3 * size, size),
            f"{prefix}.attn.in_proj_bias": (3 * size,),
            f"{prefix}.attn.out_proj.weight": (size, size),
            f"{prefix}.attn.out_proj.bias": (size,),
            **{f"{prefix}.{norm}.{kind}": (size,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")},
            f"{prefix}.mlp.c_fc.weight": (4 * size, size),
            f"{prefix}.mlp.c_fc.bias": (4 * size,),
            f"{prefix}.mlp.c_proj.weight": (size, 4 * size),
            f"{prefix}.mlp.c_proj.bias": (size,),
        }

    shapes = {
        "image_encoder.class_embedding": (width,),
        "image_encoder.conv1.weight": (width, 3, patch, patch),
        "image_encoder.positional_embedding": (1 + parts + patches, width),
        **{f"image_encoder.{norm}.{kind}": (width,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")},
        "image_encoder.proj": (width, joint),
        "prompt_learner.learnable_ctx": (identities, 1 + parts, 4, text),
        "text_encoder.positional_embedding": (77, text),
        "text_encoder.ln_final.weight": (text,),
        "text_encoder.ln_final.bias": (text,),
        "text_encoder.text_projection": (text, joint),
        **{f"bnneck.{kind}": ((1 + parts) * joint,) for kind in ("weight", "bias", "running_mean", "running_var")},
        "bnneck.num_batches_tracked": (),
        "fc.weight": (identities, (1 + parts) * joint),
    }
    for index in range(text_layers):
        shapes |= block(f"text_encoder.transformer.resblocks.{index}", text)
    for index in range(layers):
        shapes |= block(f"image_encoder.transformer.resblocks.{index}", width)
        prefix = f"residual_mask_predictor.blocks.{index}"
        shapes |= {f"{prefix}.cross_attn.to_{name}.weight": (width, width) for name in "qkv"} if parts else {}
        if parts:
            shapes |= {
                f"{prefix}.cross_attn.to_out.0.weight": (width, width),
                f"{prefix}.cross_attn.to_out.0.bias": (width,),
                f"{prefix}.mlp.0.weight": (patches, width),
                f"{prefix}.mlp.0.bias": (patches,),
                f"{prefix}.mlp.2.weight": (patches, patches),
                f"{prefix}.mlp.2.bias": (patches,),
            }
            norms = ("ln_attn1", "ln_attn2", "ln_mlp")
            shapes |= {f"{prefix}.{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
    return shapes | ({"local_token": (parts, width)} if parts else {})


@pytest.mark.parametrize("parts", [("head", "upper_body", "legs"), ()])
def test_names_and_shapes_are_the_documented_ones(model_config, parts):
    model = build_model(model_config(parts=parts), 5, seed=0)
    expected = documented_shapes(32, 12, 16, 5, len(parts), 18, 8, 3, 2)
    assert {name: tuple(tensor.shape) for name, tensor in to_reference(model).items()} == expected


def test_queries_keys_and_mlp_norms_go_to_their_places(model_config):
    model = build_model(model_config(), 5, seed=0)
    theirs = to_reference(model)
    predictor = model.image_encoder.mask_predictors[1]
    prefix = "residual_mask_predictor.blocks.1"
    assert theirs[f"{prefix}.ln_attn1.weight"].data_ptr() == predictor.ln_queries.weight.data_ptr()
    assert theirs[f"{prefix}.ln_attn2.weight"].data_ptr() == predictor.ln_patches.weight.data_ptr()
    assert theirs[f"{prefix}.ln_mlp.bias"].data_ptr() == predictor.ln_mlp.bias.data_ptr()
    assert theirs[f"{prefix}.cross_attn.to_out.0.bias"].data_ptr() == predictor.to_out.bias.data_ptr()
    assert theirs[f"{prefix}.mlp.2.weight"].data_ptr() == predictor.mlp[2].weight.data_ptr()


@pytest.mark.parametrize("parts", [("head", "upper_body", "legs"), ()])
@torch.no_grad()
def test_there_and_back_gives_the_same_model(model_config, parts):
    model = build_model(model_config(parts=parts), 5, seed=0).eval()
    for tensor in to_reference(model).values():
        if tensor.dtype == torch.float32:
            tensor.add_(torch.rand_like(tensor) * 0.1)
    back = from_reference(to_reference(model), model_config(parts=parts)).eval()
    images = torch.randn(2, 3, 48, 24)
    assert torch.equal(back.retrieval_features(images), model.retrieval_features(images))
    assert back.num_identities == 5
    for name, tensor in to_reference(model).items():
        assert torch.equal(to_reference(back)[name], tensor)


def test_missing_unknown_and_misshapen_names_are_all_listed(model_config):
    state = to_reference(build_model(model_config(), 5, seed=0))
    del state["local_token"], state["fc.weight"]
    state["surprise"] = torch.zeros(1)
    state["image_encoder.proj"] = torch.zeros(3, 3)
    with pytest.raises(DgreidError) as caught:
        from_reference(state, model_config())
    for piece in ("missing local_token", "missing fc.weight", "unknown surprise", "image_encoder.proj is [3, 3]"):
        assert piece in str(caught.value)
    with pytest.raises(DgreidError, match=r"missing prompt_learner\.learnable_ctx"):
        from_reference({}, model_config())


def test_domain_contexts_need_the_data_set_of_every_identity(model_config):
    config = model_config(domain_contexts={"a": "in a_street"})
    datasets = ["a", "b", "a"]
    model = build_model(config, 3, seed=0, datasets=datasets)
    state = to_reference(model)
    back = from_reference(state, config, datasets)
    assert torch.equal(back.encode_text(torch.arange(3)), model.encode_text(torch.arange(3)))
    with pytest.raises(UsageError, match="needs the data set of every identity"):
        from_reference(state, config)
    with pytest.raises(UsageError, match="2 data set names for 3 identities"):
        from_reference(state, config, datasets[:2])
    with pytest.raises(UsageError, match="domain_contexts names a, which no identity is of"):
        from_reference(state, config, ["A", "b", "A"])  # would give nobody the context
