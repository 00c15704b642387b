"""The form of the attention mask that a training takes: fixed on the CPU, the faster one on a GPU."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reid.config import ModelConfig
from reid.model.muva import Muva, build_model
from reid.training import mask_form
from reid.training.mask_form import choose_mask_form, mask_forms, random_attention, run_of, seconds_of

CPU = torch.device("cpu")


def fabric(device: str, sent: list[Any] | None = None) -> Any:
    """Of a device that need not be there; `sent` gets what the first process tells the others."""

    def broadcast(value: Any) -> Any:
        (sent if sent is not None else []).append(value)
        return value

    return SimpleNamespace(device=torch.device(device), autocast=nullcontext, broadcast=broadcast)


@pytest.fixture
def build(model_config: Any) -> Any:
    def built(**changes: Any) -> Muva:
        config: ModelConfig = model_config(**changes)
        return build_model(config, 3, seed=0)

    return built


@pytest.mark.parametrize(("boolean", "additive", "expected"), [(2.0, 1.0, True), (1.0, 2.0, False), (1.0, 1.0, False)])
def test_a_training_on_a_gpu_takes_the_faster_form(
    build: Any, monkeypatch: pytest.MonkeyPatch, boolean: float, additive: float, expected: bool
) -> None:
    asked: list[Any] = []

    def given(shape: Any, parts: int, device: torch.device, dtype: torch.dtype) -> Any:
        asked.append((shape, parts, device.type, dtype))
        return random_attention(shape, parts, CPU, dtype)

    def timed(forms: Any, device: torch.device, *, training: bool) -> dict[str, float]:
        assert training and {name: form().shape for name, form in forms.items()}  # they run
        return {"boolean": boolean, "additive": additive}

    monkeypatch.setattr(mask_form, "random_attention", given)
    monkeypatch.setattr(mask_form, "seconds_of", timed)
    model, sent = build(), []
    choose_mask_form(model.image_encoder, fabric("cuda", sent), batch_size=4)
    encoder = model.image_encoder
    width = encoder.proj.shape[0]
    heads = encoder.blocks[0].attn.num_heads
    assert asked == [((4, heads, 1 + 3 + model.grid.count, width // heads), 3, "cuda", torch.float32)]
    assert encoder.additive is expected and sent == [expected]


@pytest.mark.parametrize(("device", "changes"), [("cpu", {}), ("cuda", {"parts": ()}), ("cuda", {"soft_gate": 2.0})])
def test_nothing_is_timed_where_nothing_is_to_be_chosen(
    build: Any, monkeypatch: pytest.MonkeyPatch, device: str, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(mask_form, "seconds_of", lambda *_, **__: pytest.fail("timed"))
    model = build(**changes)
    choose_mask_form(model.image_encoder, fabric(device), batch_size=4)
    assert model.image_encoder.additive is False


@pytest.mark.parametrize("training", [False, True])
def test_both_forms_are_run_equally_often_and_give_the_same(training: bool) -> None:
    torch.manual_seed(0)
    q, k, v, visible = random_attention((2, 2, 1 + 3 + 6, 4), 3, CPU, torch.float32)
    forms, runs = mask_forms(q, k, v, visible), []

    def counted(name: str) -> Any:
        def run() -> torch.Tensor:
            runs.append(name)
            return forms[name]()

        return run

    seconds = seconds_of({name: counted(name) for name in forms}, CPU, training=training, rounds=1)
    assert seconds.keys() == {"boolean", "additive"} and min(seconds.values()) > 0
    assert runs.count("boolean") == runs.count("additive") > 0
    assert (q.grad is not None) is training
    torch.testing.assert_close(forms["boolean"](), forms["additive"]())
    run_of(forms["boolean"], training=True)()
    assert k.grad is not None and k.grad.isfinite().all()
