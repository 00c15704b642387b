import math

import pytest
import torch

from reid.config import Stage1Config, Stage2Config
from reid.model.muva import build_model
from reid.training.optimizer import (
    freeze_for_stage1,
    freeze_for_stage2,
    image_optimizer,
    prompt_optimizer,
    set_learning_rate,
    stage1_lr,
    stage2_lr,
)


@pytest.fixture
def model(model_config):
    return build_model(model_config(), 5, seed=0)


def test_stage1_rates_of_the_paper():
    config = Stage1Config()
    assert stage1_lr(config, 1) == pytest.approx(7.8e-5)
    assert stage1_lr(config, 4) == pytest.approx(1e-5 + 4 * 6.8e-5)
    assert stage1_lr(config, 60) == pytest.approx((3.5e-4 + 1e-6) / 2)
    assert stage1_lr(config, 120) == pytest.approx(1e-6)
    for epoch in range(5, 121):
        expected = 1e-6 + (3.5e-4 - 1e-6) * (1 + math.cos(math.pi * epoch / 120)) / 2
        assert stage1_lr(config, epoch) == pytest.approx(expected)


def test_stage2_rates_of_the_paper():
    config = Stage2Config()
    expected = {1: 9.5e-7, 5: 2.75e-6, 9: 4.55e-6, 10: 5e-6, 29: 5e-6, 30: 5e-7, 49: 5e-7, 50: 5e-8, 60: 5e-8}
    for epoch, rate in expected.items():
        assert stage2_lr(config, epoch) == pytest.approx(rate)


def test_no_warm_up_starts_at_the_full_rate():
    assert stage2_lr(Stage2Config(warmup_epochs=0), 1) == pytest.approx(5e-6)
    assert stage1_lr(Stage1Config(warmup_epochs=0, epochs=1), 1) == pytest.approx(1e-6)


def test_stage1_trains_the_prompts_only(model):
    assert freeze_for_stage1(model) == ["prompts.contexts"]
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["prompts.contexts"]


@pytest.mark.parametrize("patch_projection", [False, True])
def test_stage2_trains_the_image_side_only(model, patch_projection):
    freeze_for_stage1(model)
    trained = set(freeze_for_stage2(model, Stage2Config(train_patch_projection=patch_projection)))
    frozen = {name for name, _ in model.named_parameters()} - trained
    expected = {name for name in frozen | trained if name.startswith(("text_encoder.", "prompts."))}
    expected |= {"bnneck.bias"} | (set() if patch_projection else {"image_encoder.conv1.weight"})
    assert frozen == expected
    assert {"image_encoder.part_tokens", "image_encoder.positional_embedding", "classifier.weight"} <= trained


def test_prompt_optimizer_is_adam_with_coupled_decay(model):
    optimizer = prompt_optimizer(model, Stage1Config())
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert group["params"] == [model.prompts.contexts] and group["weight_decay"] == 1e-4
    assert group["lr"] == pytest.approx(7.8e-5) and group["betas"] == (0.9, 0.999)
    before = model.prompts.contexts.detach().clone()
    model.prompts.contexts.grad = torch.zeros_like(before)
    optimizer.step()
    gradient = 1e-4 * before  # Adam's first step divides by its size; AdamW would shrink by lr * 1e-4
    expected = before - group["lr"] * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(model.prompts.contexts.detach(), expected)


def test_image_optimizer_gives_the_mask_predictors_their_own_group(model):
    config = Stage2Config()
    optimizer = image_optimizer(model, config)
    assert type(optimizer) is torch.optim.Adam
    others, predictors = optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in predictors["params"]} == {n for n in names.values() if "mask_predictors" in n}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {names[id(p)] for group in (others, predictors) for p in group["params"]} == trained
    assert (others["weight_decay"], predictors["weight_decay"]) == (1e-4, 0.0)
    assert (others["lr"], predictors["lr"]) == (pytest.approx(9.5e-7), pytest.approx(9.5e-6))
    set_learning_rate(optimizer, stage2_lr(config, 30))
    assert (others["lr"], predictors["lr"]) == (pytest.approx(5e-7), pytest.approx(5e-6))


def test_the_rate_factors_survive_a_checkpoint(model):
    optimizer = image_optimizer(model, Stage2Config())
    restored = image_optimizer(model, Stage2Config(mask_lr_factor=3.0))
    restored.load_state_dict(optimizer.state_dict())
    assert [group["lr_factor"] for group in restored.param_groups] == [1.0, 10.0]


def test_without_parts_there_is_one_group(model_config):
    optimizer = image_optimizer(build_model(model_config(parts=()), 5, seed=0), Stage2Config())
    assert len(optimizer.param_groups) == 1
