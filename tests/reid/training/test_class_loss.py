"""Cross-entropy over many identities: in blocks it is the one of all logits at once."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from reid.training import class_loss as module
from reid.training.class_loss import class_loss, smoothed_cross_entropy
from reid.training.losses import IdentityMemory

CLASSES, WIDTH = 53, 6
LABELS = torch.tensor([0, 52, 17, 17, 30, 9])


def both(
    monkeypatch: pytest.MonkeyPatch, block: int, run: Any, dtype: torch.dtype = torch.float64
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What `run(features, rows)` gives, and its gradients, with all logits at once and with `block` of them."""
    found = []
    for limit in (2**30, 4 * len(LABELS) * block):
        monkeypatch.setattr(module, "BLOCK_BYTES", limit)
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(len(LABELS), WIDTH, generator=generator).to(dtype).requires_grad_()
        rows = torch.randn(CLASSES, WIDTH, generator=generator).to(dtype).requires_grad_()
        loss, *others = run(features, rows)
        (3 * loss).backward()
        found.append([loss.detach(), *others, *(x.grad for x in (features, rows) if x.grad is not None)])
    return found[0], found[1]


@pytest.mark.parametrize("block", [1, 7, 52])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_blocks_change_nothing(
    block: int, smoothing: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(features: torch.Tensor, rows: torch.Tensor) -> Any:
        return class_loss(features, rows, LABELS, smoothing, temperature)

    whole, blocked = both(monkeypatch, block, run)
    assert len(whole) == 4 and torch.equal(whole[1], blocked[1])
    torch.testing.assert_close(blocked, whole, rtol=1e-10, atol=1e-12)
    whole, blocked = both(monkeypatch, block, run, torch.float32)
    torch.testing.assert_close(blocked, whole, rtol=1e-4, atol=1e-4)


def test_the_blocked_gradient_is_that_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    features, rows = (torch.randn(count, 4, generator=generator).double().requires_grad_() for count in (3, 10))
    labels = torch.tensor([9, 0, 4])

    def blocked(features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = module._BlockedCrossEntropy.apply(features, rows, labels, 0.1, 0.5, 4)[0]
        return loss

    assert torch.autograd.gradcheck(blocked, (features, rows))
    torch.testing.assert_close(blocked(features, rows), smoothed_cross_entropy(features @ rows.T / 0.5, labels, 0.1))


def test_blocks_compute_in_half_precision_where_autocast_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(features: torch.Tensor, rows: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return class_loss(features, rows, LABELS, 0.1)

    whole, blocked = both(monkeypatch, 7, run, torch.float32)
    assert all(tensor.dtype == torch.float32 for tensor in (blocked[0], *blocked[2:]))
    torch.testing.assert_close(blocked[0], whole[0], rtol=1e-5, atol=1e-5)  # the same rounded logits
    torch.testing.assert_close(blocked[2:], whole[2:], rtol=2e-2, atol=2e-2)


def test_the_memory_is_updated_after_all_blocks_have_used_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_after = []

    def run(features: torch.Tensor, rows: torch.Tensor) -> Any:
        memory = IdentityMemory(F.normalize(rows, dim=1), temperature=0.01, momentum=0.2)
        rows_after.append(memory.rows)
        return (memory(F.normalize(features, dim=1), LABELS),)

    whole, blocked = both(monkeypatch, 7, run, torch.float32)
    torch.testing.assert_close(blocked, whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(*rows_after)


def test_no_table_of_all_logits_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 8 * 1000)  # of 8 features and 1000 classes
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            sizes.extend(
                one.shape for one in (found if isinstance(found, tuple) else (found,)) if hasattr(one, "shape")
            )
            return found

    features, rows = torch.randn(8, 5, requires_grad=True), torch.randn(20_000, 5, requires_grad=True)
    with Sizes():
        class_loss(features, rows, torch.arange(8), 0.1)[0].backward()
    assert max(shape.numel() for shape in sizes if len(shape) == 2 and 8 in shape) == 8000
    assert max(shape.numel() for shape in sizes) == 100_000  # the gradient of the rows
