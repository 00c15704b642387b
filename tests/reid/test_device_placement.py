"""Whether work for a GPU stays there, found out without one: operations run on tensors without values, and one that
mixes devices, or makes the CPU wait for the device, is refused.

Autograd on CUDA tensors needs a driver even where they hold nothing, so losses and their gradients run on torch's
device "meta"; what needs no gradients, and the optimisers, run on pretended CUDA tensors, autocast included.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from reid.config import Stage1Config, Stage2Config
from reid.data.augment import Augmentation
from reid.data.person_images import Batch, _on
from reid.data.transforms import normalised
from reid.metrics.retrieval import evaluate
from reid.model.muva import Muva, build_model
from reid.training.optimizer import WeightAverage, image_optimizer, prompt_optimizer
from reid.training.steps import ImageStep, PromptStep

aten = torch.ops.aten
TRANSFERS = {aten._to_copy, aten.copy_, aten._copy_from}
WAITING = {  # the size of what they give, or a decision, depends on values
    aten._local_scalar_dense,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten._unique,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
}


class MixedError(Exception):
    """An operation on the device was given a CPU tensor."""


class WaitsError(Exception):
    """The CPU would wait for the device."""


class Placement(TorchDispatchMode):
    """Refuses what a device does not do, or not without making the CPU wait.

    device: its type, "meta" or "cuda". seen: how many operations were on it.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.seen = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [one for one in tensors if one.device.type == self.device]
        packet, target = func.overloadpacket, kwargs.get("device")
        self.seen += bool(there)
        if packet is aten._pin_memory:  # needs a driver
            return args[0].clone()
        if packet in TRANSFERS:
            kinds = {one.device.type for one in tensors} | ({torch.device(target).type} if target else set())
            waits = not (kwargs.get("non_blocking") or args[2:3] == (True,))
            if len(kinds) > 1 and waits:
                raise WaitsError(f"{func}: a copy from {tensors[-1].device} that is waited for")
            if there and target and torch.device(target).type == "cpu":
                raise WaitsError(f"{func}: values are asked for")
        elif there and any(one.device.type != self.device and one.dim() for one in tensors):
            raise MixedError(f"{func}: {[str(one.device) for one in tensors]}")
        elif there and packet in WAITING:
            raise WaitsError(str(func))
        elif there and packet in {aten.index, aten.index_put, aten.index_put_} and _by_mask(args[1]):
            raise WaitsError(f"{func}: by a mask")
        elif there and func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            raise WaitsError(str(func))
        return func(*args, **kwargs)


def _by_mask(indices: Any) -> bool:
    return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in indices)


@contextmanager
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[Placement]:
    """Work on the device "meta", which autocast does not know."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    with Placement("meta") as placement:
        yield placement


@contextmanager
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Placement]:
    """Work on pretended CUDA tensors."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    with FakeTensorMode(allow_non_fake_inputs=True), Placement("cuda") as placement:
        yield placement


def moved_to_cuda(module: Any) -> Any:
    """The module with tensors that hold nothing in the place of its own; inside `on_cuda`."""
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                given = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                part._parameters[name] = nn.Parameter(given, requires_grad=value.requires_grad)
        for name, value in list(part._buffers.items()):
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")
    return module


PEOPLE = 8


def batch_of(model: Muva) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.zeros(8, 3, model.grid.image_height, model.grid.image_width, dtype=torch.uint8)
    return images, torch.arange(8) // 2, torch.ones(8, model.num_parts, model.grid.count, dtype=torch.bool)


def image_step(model: Muva, leave_out: bool = False, **settings: Any) -> ImageStep:
    text = torch.zeros(PEOPLE, model.feature_dim)
    image_optimizer(model, config := Stage2Config(**settings))
    return ImageStep(model, text, config, leave_out_absent_parts=leave_out).train()


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        ({}, {}),
        ({}, {"leave_out": True}),
        ({}, {"leave_out": True, "sampled_identities": 5}),
        ({"soft_gate": 4.0}, {}),
        ({"attention_mask": "additive"}, {}),
        ({"parts": ()}, {"sampled_identities": 5}),
    ],
)
@pytest.mark.parametrize("blocked", [False, True])
def test_a_step_of_stage_2_stays_on_its_device(
    overrides: dict[str, Any],
    settings: dict[str, Any],
    blocked: bool,
    model_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if blocked:  # losses over identities two at a time
        monkeypatch.setattr("reid.training.class_loss.BLOCK_BYTES", 2 * 4 * 8)
    model = build_model(model_config(**overrides), PEOPLE, seed=0)
    step, batch = image_step(model, **settings).to("meta"), [each.to("meta") for each in batch_of(model)]
    with on_meta(monkeypatch) as placement:
        total, measured = step(*batch)
        total.backward()
    assert measured.device.type == "meta" and placement.seen > 300
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


PLANTED: dict[str, tuple[Callable[[Tensor], Tensor], type[Exception]]] = {
    "value": (lambda images: images * images.sum().item(), WaitsError),
    "decision": (lambda images: images if images.sum() > 0 else -images, WaitsError),
    "copy to the CPU": (lambda images: images * images.cpu().sum().to(images.device, non_blocking=True), WaitsError),
    "copy that is waited for": (lambda images: images + torch.ones(len(images), 1, 1, 1).to(images.device), WaitsError),
    "selection": (lambda images: images[images.sum(dim=(1, 2, 3)) > 0], WaitsError),
    "unique": (lambda images: images * len(images.unique()), WaitsError),
    "CPU tensor": (lambda images: images + torch.ones(len(images), 1, 1, 1), MixedError),
    "CPU index": (lambda images: images[torch.arange(8)], MixedError),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_a_planted_mistake_is_found(
    name: str, device: str, model_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, error = PLANTED[name]
    monkeypatch.setattr("reid.training.steps.normalised", lambda images: wrong(normalised(images)))
    model = build_model(model_config(), PEOPLE, seed=0)
    step, batch = image_step(model), batch_of(model)
    if device == "meta":
        step, given = step.to("meta"), [each.to("meta") for each in batch]
        with on_meta(monkeypatch), pytest.raises(error):
            step(*given)
        return
    with on_cuda(monkeypatch), torch.no_grad():
        given = [torch.empty(each.shape, dtype=each.dtype, device="cuda") for each in batch]
        with pytest.raises(error):
            moved_to_cuda(step)(*given)


def test_a_step_of_stage_1_stays_on_its_device(
    model_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(model_config(), PEOPLE, seed=0)
    prompt_optimizer(model, Stage1Config())
    step = PromptStep(model, torch.zeros(PEOPLE, model.feature_dim)).to("meta")
    given = [each.to("meta") for each in batch_of(model)[1].unique(return_inverse=True)]
    with on_meta(monkeypatch) as placement:
        step(*given).backward()
    assert placement.seen > 30 and model.prompts.contexts.grad is not None


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, None])
@pytest.mark.parametrize("overrides", [{}, {"soft_gate": 4.0}, {"attention_mask": "additive"}, {"parts": ()}])
def test_losses_and_features_under_autocast(
    precision: torch.dtype | None,
    overrides: dict[str, Any],
    model_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model(model_config(**overrides), PEOPLE, seed=0)
    step, batch = image_step(model, leave_out=True, sampled_identities=5), batch_of(model)
    with on_cuda(monkeypatch) as placement, torch.no_grad():
        given = [torch.empty(each.shape, dtype=each.dtype, device="cuda") for each in batch]
        moved_to_cuda(step)
        with torch.autocast("cuda", dtype=precision) if precision else nullcontext():
            assert not precision or torch.mm(*[torch.empty(2, 2, device="cuda")] * 2).dtype == precision
            total, measured = step(*given)
            model.eval()
            features, masks = model.embed(normalised(given[0]))
            bank = model.neck(model.encode_images(normalised(given[0]), visible=given[2]).features)
            text = model.encode_text(given[1])
            looks = model.image_encoder.part_attention(normalised(given[0]))
    assert {each.dtype for each in (total, measured, features, bank, text)} == {torch.float32}
    assert masks is None or masks.dtype == torch.float32
    assert looks[0].dtype == torch.bool and placement.seen > 300


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by deepcopy, which needs no values
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_an_update_of_the_weights_and_their_average_stays_on_the_gpu(
    clipped: bool, scaled: bool, model_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but one: a scaler waits to know whether a step that is not fused is to be skipped."""
    model, waits = build_model(model_config(), PEOPLE, seed=0), clipped and scaled
    with pytest.raises(WaitsError) if waits else nullcontext(), on_cuda(monkeypatch) as placement:
        moved_to_cuda(model)
        optimizer = image_optimizer(model, Stage2Config(), fused=not waits)
        averaged = WeightAverage(model, 0.9)
        scaler = torch.amp.GradScaler("cuda") if scaled else None
        trained = [value for group in optimizer.param_groups for value in group["params"]]
        for _ in range(2):
            for value in trained:
                value.grad = torch.empty_like(value)
            if scaler:
                scaler.scale(torch.empty((), device="cuda"))
            if clipped:
                if scaler:
                    scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(trained, 1.0)
            scaler.step(optimizer) if scaler else optimizer.step()
            if scaler:
                scaler.update()
            averaged.update(model)
    assert placement.seen > 10
    assert all(value.device.type == "cuda" for value in averaged.module.state_dict().values())


def test_batches_are_finished_on_the_gpu_without_waiting(
    model_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(model_config(), PEOPLE, seed=0)
    images, indices, visible = batch_of(model)
    size = (model.grid.image_height, model.grid.image_width)
    given = Augmentation(flip=0.5, crop_padding=2, erasing=0.5, colour_jitter=0.3, seed=1)
    changes = given.drawn(range(8), epoch=1, size=size)
    assert changes.flipped is not None and changes.rectangles is not None
    with on_cuda(monkeypatch) as placement:
        found = _on(torch.device("cuda"), Batch(images, visible, indices), changes)
        floats = normalised(found.images)
    assert {each.device.type for each in found} == {"cuda"} and floats.dtype == torch.float32 and placement.seen > 20


class There(Tensor):
    """A pretended CUDA tensor with values: those of a CPU tensor."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> "There":
        made = Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), dtype=value.dtype, device=torch.device("cuda:0")
        )
        made.value = value
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} outside of `Values`")


class Values(TorchDispatchMode):
    """Computes on CUDA tensors that are `There`, where decisions depend on values; refuses to mix them with others."""

    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # no driver is asked for
        torch._C._ensureCUDADeviceGuardSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(isinstance(one, There) for one in tensors)
        if "device" in kwargs and kwargs["device"] is not None:
            there, kwargs["device"] = torch.device(kwargs["device"]).type == "cuda", torch.device("cpu")
        elif there and func.overloadpacket is not aten.copy_ and any(_is_here(one) for one in tensors):
            raise MixedError(str(func))
        found = func(*tree_map(_value, args), **tree_map(_value, kwargs))
        if not there:
            return found
        own = {id(one.value): one for one in tensors if isinstance(one, There)}  # given back by operations in place
        return tree_map(lambda one: own.get(id(one), There(one)) if isinstance(one, Tensor) else one, found)


def _is_here(tensor: Tensor) -> bool:
    return not isinstance(tensor, There) and tensor.dim() > 0


def _value(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, There) else leaf


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU gpu_check.py ranks on it")
@pytest.mark.parametrize("ranked", [0, 9])
def test_a_ranking_stays_on_the_gpu(ranked: int) -> None:
    rng = np.random.default_rng(0)
    query, gallery = (rng.standard_normal((count, 16)).astype(np.float32) for count in (30, 300))
    gallery[50:60] = gallery[20:30]  # copies: exact comparisons
    sides = query, np.arange(30) % 7, np.arange(30) % 3, gallery, np.arange(300) % 7, np.arange(300) % 4
    expected = evaluate(*sides, ranked=ranked)
    with Values():
        found = evaluate(*sides, ranked=ranked, device="cuda")
        with pytest.raises(MixedError):
            torch.ones(2, device="cuda") + torch.ones(2)
    assert np.array_equal(expected.ranked, found.ranked)
    assert np.array_equal(expected.per_query_ap, found.per_query_ap)
