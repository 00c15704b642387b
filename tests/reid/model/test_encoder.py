import itertools
import math

import open_clip
import pytest
import torch
from torch.nn import functional as F

from reid.config import ModelConfig
from reid.model.image_encoder import additive_mask, attention_mask, resized_positions
from reid.model.muva import build_model
from reid.training.losses import mask_bce_loss, mask_dice_loss


def lively(model):
    """Weights of a size at which every term of the formula shows in the output."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if not name.startswith("text_encoder"):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += noise * (0.3 if "mask_predictors" in name else 0.05)
    return model


@pytest.fixture
def images():
    return torch.rand(4, 3, 48, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def slow_mask(visible, soft=None):
    """The who-sees-whom table for one image: visible [R][L] -> additive mask, 0 or -inf, or (2p - 1) * soft."""
    parts, patches = len(visible), len(visible[0])
    kinds = [("class", 0), *[("part", r) for r in range(parts)], *[("patch", k) for k in range(patches)]]
    mask = torch.zeros(len(kinds), len(kinds))
    for (i, (query, a)), (j, (key, b)) in itertools.product(enumerate(kinds), repeat=2):
        allowed = True
        if query == "part" and key == "part":
            allowed = a == b
        elif query == "part" and key == "patch":
            allowed = visible[a][b]
        elif query == "patch" and key == "part":
            allowed = visible[b][a]
        if soft is not None and {query, key} == {"part", "patch"}:
            mask[i, j] = (2 * float(allowed) - 1) * soft
        else:
            mask[i, j] = 0.0 if allowed else -math.inf
    return mask


def slow_block(block, x, mask):
    """A pre-norm block for one image (N, D), heads one after another, additive mask."""
    width, heads = x.shape[1], block.attn.num_heads
    depth = width // heads
    normed = F.layer_norm(x, (width,), block.ln_1.weight, block.ln_1.bias, 1e-5)
    q, k, v = (normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).split(width, dim=1)
    mixed = []
    for head in range(heads):
        columns = slice(head * depth, (head + 1) * depth)
        weights = torch.softmax(q[:, columns] @ k[:, columns].T / math.sqrt(depth) + mask, dim=1)
        mixed.append(weights @ v[:, columns])
    x = x + torch.cat(mixed, dim=1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
    normed = F.layer_norm(x, (width,), block.ln_2.weight, block.ln_2.bias, 1e-5)
    hidden = normed @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    return x + hidden @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias


def slow_encode(model, image, given=None):
    """Sec. 2 for one image: every token through every block. Returns feature and logits per layer."""
    encoder, grid, parts = model.image_encoder, model.grid, model.num_parts
    width = encoder.conv1.out_channels
    patches = []
    for row, column in itertools.product(range(grid.rows), range(grid.columns)):
        top, left = row * grid.stride, column * grid.stride
        square = image[:, top : top + grid.patch, left : left + grid.patch]
        patches.append((encoder.conv1.weight * square).sum(dim=(1, 2, 3)))
    x = torch.stack([encoder.class_embedding, *encoder.part_tokens, *patches]) + encoder.positional_embedding
    x = F.layer_norm(x, (width,), encoder.ln_pre.weight, encoder.ln_pre.bias, 1e-5)
    logits, layers = torch.zeros(parts, grid.count), []
    for block, predictor in zip(encoder.blocks, encoder.mask_predictors, strict=True):
        if given is None:
            logits = predictor(x[None, 1 : 1 + parts], x[None, 1 + parts :])[0] + logits
            layers.append(logits)
            visible = 1 / (1 + torch.exp(-logits / encoder.mask_temperature))
            visible = visible > encoder.gate_threshold if encoder.soft_gate is None else visible
        else:
            visible = given
        x = slow_block(block, x, slow_mask(visible.tolist(), encoder.soft_gate))
    x = F.layer_norm(x, (width,), encoder.ln_post.weight, encoder.ln_post.bias, 1e-5) @ encoder.proj
    return x[: 1 + parts].flatten(), layers


def test_attention_mask_is_the_table():
    visible = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    allowed = attention_mask(visible)
    assert allowed.shape == (3, 1, 8, 8) and allowed.dtype == torch.bool
    for one, rows in zip(allowed[:, 0], visible, strict=True):
        assert torch.equal(one, slow_mask(rows.tolist()) == 0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stride": 5},
        {"mask_temperature": 0.3, "gate_threshold": 0.6},
        {"soft_gate": 4.0, "mask_temperature": 0.5},
        {"attention_mask": "additive"},
        {"parts": ("legs",), "mask_heads": 8},
        {"parts": ("head", "upper_body", "legs", "left_hand", "bag")},
    ],
)
@torch.no_grad()
def test_whole_forward_equals_the_naive_one_with_predicted_masks(model_config, images, changes):
    model = lively(build_model(model_config(**changes), 5, seed=0)).eval()
    output = model.encode_images(images)
    assert output.features.shape == (4, 12 * (1 + model.num_parts)) and output.features.dtype == torch.float32
    assert output.mask_logits.shape == (3, 4, model.num_parts, model.grid.count)
    for index, image in enumerate(images):
        feature, layers = slow_encode(model, image)
        torch.testing.assert_close(output.features[index], feature, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(output.mask_logits[:, index], torch.stack(layers), rtol=1e-4, atol=2e-5)
    gates = output.mask_logits > 0
    assert gates.any() and not gates.all()


@pytest.mark.parametrize("row", [None, 8, 16])
def test_the_additive_mask_says_what_the_boolean_one_says(row):
    allowed = attention_mask(torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) > 0.5)
    added = additive_mask(allowed, torch.bfloat16, row)
    assert added.shape == allowed.shape and added.dtype == torch.bfloat16
    assert torch.equal(added == 0, allowed) and torch.equal(added == -torch.inf, ~allowed)
    assert added.stride(-2) == (row or 8)


@pytest.mark.parametrize("autocast", [False, True])
def test_both_forms_of_the_mask_give_the_same_features_and_gradients(model_config, images, autocast):
    found = []
    for form in ("boolean", "additive"):
        model = lively(build_model(model_config(attention_mask=form), 5, seed=0)).eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model.encode_images(images)
        (output.features.square().sum() + output.mask_logits.square().sum()).backward()
        named = model.image_encoder.named_parameters()
        found.append((output.features, {name: p.grad for name, p in named if p.grad is not None}))
    (features, gradients), (others, other_gradients) = found
    tolerance = {"rtol": 3e-2, "atol": 3e-2} if autocast else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(others, features, **tolerance)
    assert gradients.keys() == other_gradients.keys() and len(gradients) > 20
    for name, gradient in gradients.items():
        scale = gradient.abs().max().clamp_min(1e-6)
        torch.testing.assert_close(other_gradients[name] / scale, gradient / scale, **tolerance)


@pytest.mark.parametrize("soft_gate", [None, 3.0])
@torch.no_grad()
def test_given_masks_replace_the_predictors_at_every_block(model_config, images, soft_gate):
    model = lively(build_model(model_config(soft_gate=soft_gate), 5, seed=0)).eval()
    visible = torch.rand(4, 3, model.grid.count, generator=torch.Generator().manual_seed(2)) > 0.5
    visible[0] = False  # no part has a box: its tokens see only the class token and themselves
    output = model.encode_images(images, visible)
    assert output.mask_logits is None
    for index, image in enumerate(images):
        feature, _ = slow_encode(model, image, visible[index])
        torch.testing.assert_close(output.features[index], feature, rtol=1e-4, atol=2e-5)
    assert (output.features - model.encode_images(images).features).abs().max() > 1e-3


def test_the_gate_is_strictly_above_the_threshold(model_config):
    encoder = build_model(model_config(), 5, seed=0).image_encoder
    logits = torch.tensor([-1e-6, 0.0, 1e-6]).requires_grad_()
    gate = encoder._gate(logits)
    assert gate.tolist() == [False, False, True] and not gate.requires_grad


@pytest.mark.parametrize("stride", [8, 16])
@torch.no_grad()
def test_without_parts_it_is_the_plain_clip_of_open_clip(stride):
    architecture = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": stride},
        "text_cfg": {"width": 16, "heads": 2, "layers": 1},
    }
    config = ModelConfig(
        architecture=architecture, pretrained=None, parts=(), image_size=(64, 64), stride=stride, backbone="small"
    )
    model = build_model(config, 5, seed=3).eval()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = open_clip.CLIP(**architecture).eval()
    images = torch.randn(2, 3, 64, 64)
    output = model.encode_images(images)
    torch.testing.assert_close(output.features, plain.visual(images), rtol=1e-5, atol=1e-5)
    assert output.mask_logits is None and not hasattr(model.image_encoder, "part_tokens")
    assert len(model.image_encoder.mask_predictors) == 0 and model.encode_text(torch.arange(2)).shape == (2, 16)


def test_position_table_keeps_the_class_row_and_resizes_the_grid():
    table = torch.randn(1 + 14 * 14, 6)
    resized = resized_positions(table, (14, 14), (16, 8))
    assert torch.equal(resized[0], table[0])
    for row, column in itertools.product(range(16), range(8)):  # bilinear, half-pixel centres, edges repeated
        y = min(max((row + 0.5) * 14 / 16 - 0.5, 0), 13)
        x = min(max((column + 0.5) * 14 / 8 - 0.5, 0), 13)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, 13), min(left + 1, 13)
        grid = table[1:].view(14, 14, 6)
        upper = grid[top, left] * (1 - (x - left)) + grid[top, right] * (x - left)
        lower = grid[bottom, left] * (1 - (x - left)) + grid[bottom, right] * (x - left)
        expected = upper * (1 - (y - top)) + lower * (y - top)
        torch.testing.assert_close(resized[1 + row * 8 + column], expected, rtol=1e-5, atol=1e-5)


def test_part_rows_of_the_table_start_as_the_class_row(model_config):
    model = build_model(model_config(stride=4, image_size=(40, 20)), 5, seed=0)
    table = model.image_encoder.positional_embedding
    assert table.shape == (1 + 3 + model.grid.count, 32) and table.requires_grad
    for part in (1, 2, 3):
        assert torch.equal(table[part], table[0])
    tokens = model.image_encoder.part_tokens
    assert tokens.shape == (3, 32) and 0.01 < tokens.std() < 0.03


def gradient_names(model, loss):
    model.zero_grad()
    loss.backward()
    named = model.named_parameters()
    return {name for name, parameter in named if parameter.grad is not None and parameter.grad.abs().sum() > 0}


def test_features_give_the_mask_predictors_no_gradient(model_config, images):
    model = lively(build_model(model_config(), 5, seed=0))
    reached = gradient_names(model, model.neck(model.encode_images(images).features).square().sum() * 100)
    assert not any("mask_predictors" in name for name in reached)
    assert {"image_encoder.part_tokens", "image_encoder.positional_embedding", "image_encoder.proj"} <= reached
    assert all(f"image_encoder.blocks.{i}.mlp.c_fc.weight" in reached for i in range(3))


def test_the_soft_gate_gives_them_one_and_changes_the_feature(model_config, images):
    hard, soft = (lively(build_model(model_config(soft_gate=gate), 5, seed=0)) for gate in (None, 4.0))
    features = soft.encode_images(images).features
    assert (features - hard.encode_images(images).features).abs().max() > 1e-3
    reached = gradient_names(soft, soft.neck(features).square().sum() * 100)
    assert all(f"image_encoder.mask_predictors.{i}.mlp.2.weight" in reached for i in range(3))


@pytest.mark.parametrize("loss", [mask_bce_loss, mask_dice_loss])
def test_mask_losses_reach_all_predictors_and_the_backbone_below_the_last_block(model_config, images, loss):
    model = lively(build_model(model_config(), 5, seed=0))
    visible = torch.rand(4, 3, model.grid.count) > 0.5
    reached = gradient_names(model, loss(model.encode_images(images).mask_logits, visible))
    predictors = {name for name, _ in model.named_parameters() if "mask_predictors" in name}
    assert predictors <= reached
    below = {name for name, _ in model.named_parameters() if "image_encoder.blocks." in name} - {
        name for name, _ in model.named_parameters() if "image_encoder.blocks.2." in name
    }
    assert below <= reached
    assert not any(name.startswith(("image_encoder.blocks.2.", "image_encoder.ln_post")) for name in reached)
    assert "image_encoder.proj" not in reached


@torch.no_grad()
def test_half_precision_keeps_logits_and_features_in_float32(model_config, images):
    model = lively(build_model(model_config(), 5, seed=0)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.encode_images(images)
    assert output.features.dtype == output.mask_logits.dtype == torch.float32
    full = model.encode_images(images).features
    assert F.cosine_similarity(output.features, full).min() > 0.9
