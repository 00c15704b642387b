import math

import pytest
import torch
from torch.nn import functional as F

from reid.training import losses
from reid.training.class_loss import smoothed_cross_entropy


def slow_cross_entropy(logits, labels, smoothing):
    total, classes = 0.0, logits.shape[1]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        normaliser = math.log(sum(math.exp(value) for value in row))
        for index, value in enumerate(row):
            target = smoothing / classes + (1 - smoothing) * (index == label)
            total -= target * (value - normaliser)
    return total / len(labels)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    labels = torch.tensor([0, 3, 3, 1, 4])
    return torch.randn(5, 6).double() * 2, torch.randn(7, 6).double(), labels


@pytest.fixture
def masks():
    torch.manual_seed(1)
    return torch.randn(2, 4, 3, 5).double() * 3, torch.rand(4, 3, 5) > 0.6


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_cross_entropy(batch, smoothing):
    features, _, labels = batch
    expected = slow_cross_entropy(features, labels, smoothing)
    assert smoothed_cross_entropy(features, labels, smoothing).item() == pytest.approx(expected)


def test_identity_loss_is_that_of_the_classifiers_logits(batch):
    features, classes, labels = batch
    logits = torch.tensor([[sum(a * b for a, b in zip(f, c, strict=True)) for c in classes] for f in features])
    loss, preferred = losses.identity_loss(features, classes, labels, 0.1)
    assert loss.item() == pytest.approx(slow_cross_entropy(logits, labels, 0.1))
    assert preferred.tolist() == [row.index(max(row)) for row in logits.tolist()]


def test_text_loss_normalises_neither_side(batch):
    features, text, labels = batch
    logits = torch.tensor([[sum(a * b for a, b in zip(f, t, strict=True)) for t in text] for f in features])
    expected = slow_cross_entropy(logits, labels, 0.1)
    assert losses.text_loss(features, text, labels, 0.1).item() == pytest.approx(expected)
    assert losses.text_loss(2 * features, text, labels, 0.1).item() != pytest.approx(expected)
    assert losses.text_loss(5 * features, 5 * text, labels, 0.1, 25.0).item() == pytest.approx(expected)


def test_prompt_loss_normalises_the_text_and_has_temperature_one(batch):
    features, prototypes, labels = batch
    prototypes = F.normalize(prototypes, dim=1)
    logits = torch.stack([feature / feature.norm() @ prototypes.T for feature in features])
    expected = slow_cross_entropy(logits, labels, 0.0)
    assert losses.prompt_loss(features, prototypes, labels).item() == pytest.approx(expected)
    assert losses.prompt_loss(5 * features, prototypes, labels).item() == pytest.approx(expected)


def test_mask_bce(masks):
    logits, visible = masks
    total = 0.0
    for layer in logits:
        for value, shown in zip(layer.flatten().tolist(), visible.flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-value))
            total -= math.log(p if shown else 1 - p)
    assert losses.mask_bce_loss(logits, visible).item() == pytest.approx(total / logits.numel())


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_mask_dice(masks, temperature):
    logits, visible = masks
    visible[0, 0] = False  # a part that is not there
    scores = []
    for layer in logits:
        for rows, targets in zip(layer.flatten(0, 1).tolist(), visible.flatten(0, 1).tolist(), strict=True):
            p = [1 / (1 + math.exp(-value / temperature)) for value in rows]
            both = sum(a * b for a, b in zip(p, targets, strict=True))
            scores.append((2 * both / 1000 + 1e-6) / ((sum(p) + sum(targets)) / 1000 + 1e-6))
    expected = 1 - sum(scores) / len(scores)
    assert losses.mask_dice_loss(logits, visible, temperature).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [losses.mask_bce_loss, losses.mask_dice_loss])
def test_weights_leave_absent_parts_out_of_the_mask_losses(masks, loss):
    logits, visible = masks
    present = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]]).bool()
    pairs = [(image, part) for image in range(4) for part in range(3) if present[image, part]]
    slow = sum(loss(logits[:, [b]][:, :, [r]], visible[[b]][:, [r]]) for b, r in pairs) / len(pairs)
    weighted = present / present.sum()
    assert loss(logits, visible, weights=weighted).item() == pytest.approx(slow.item())
    assert loss(logits, visible).item() != pytest.approx(slow.item())
    everything = torch.full((4, 3), 1 / 12)
    assert loss(logits, visible, weights=everything).item() == pytest.approx(loss(logits, visible).item())
    nothing = torch.zeros(4, 3)
    assert loss(logits, visible, weights=nothing).item() == 0


def test_perfect_masks_cost_nothing():
    visible = torch.rand(2, 3, 8) > 0.5
    logits = (visible.float() * 2 - 1).expand(4, -1, -1, -1) * 50
    assert losses.mask_bce_loss(logits, visible) < 1e-6
    assert losses.mask_dice_loss(logits, visible).abs() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_exist_in_every_precision(batch, masks, dtype):
    features, other, labels = batch
    logits, visible = masks
    for loss, leaf in [
        (lambda x: losses.identity_loss(x, other.to(dtype), labels, 0.1)[0], features),
        (lambda x: losses.text_loss(x, other.to(dtype), labels, 0.1), features),
        (lambda x: losses.prompt_loss(x, other.to(dtype), labels), features),
        (lambda x: losses.mask_bce_loss(x, visible), logits),
        (lambda x: losses.mask_dice_loss(x, visible), logits),
    ]:
        inputs = leaf.to(dtype).requires_grad_()
        loss(inputs).backward()
        assert torch.isfinite(inputs.grad).all() and inputs.grad.any()


def test_nothing_to_average_gives_zero_with_a_gradient_path():
    none, labels = torch.zeros(0, 6, requires_grad=True), torch.zeros(0, dtype=torch.long)
    logits, visible = torch.zeros(2, 4, 0, 5, requires_grad=True), torch.zeros(4, 0, 5, dtype=torch.bool)
    for value in (
        losses.identity_loss(none, torch.randn(3, 6), labels, 0.1)[0],
        losses.text_loss(none, torch.randn(3, 6), labels, 0.1),
        losses.prompt_loss(none, torch.randn(3, 6), labels),
        losses.mask_bce_loss(logits, visible),
        losses.mask_dice_loss(logits, visible),
    ):
        value.backward()
        assert value.item() == 0.0


def test_the_text_loss_keeps_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    features, text = (torch.randn(count, 64, generator=generator) * 4 for count in (6, 5))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    expected = losses.text_loss(features, text, labels, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(losses.text_loss(features, text, labels, 0.1), expected)
        rough = smoothed_cross_entropy((features @ text.T).float(), labels, 0.1)
    assert not torch.allclose(rough, expected, rtol=1e-4)  # what half precision would have made of it
