"""Half precision, clipped gradients, and what a training tells about itself."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import reid.inference.devices
import reid.training.train
from reid.config import RunConfig
from reid.data.person_images import load_batches
from reid.model.checkpoint import load_checkpoint
from reid.model.muva import Muva
from reid.training.job import Job
from reid.training.optimizer import image_optimizer
from reid.training.stage1 import learn_prompts
from reid.training.stage2 import text_prototypes, train_images
from reid.training.steps import ImageStep

Start = Callable[[RunConfig, Path], tuple[Muva, Job]]
Config = Callable[..., RunConfig]
TrainRun = Callable[[RunConfig, Path], None]
TrainUntil = Callable[[RunConfig, Path, int], None]


def fabric_in_half_precision(scale: float) -> Callable[..., Fabric]:
    """`16-mixed` is refused without a GPU because it is slow there; the same plugin and scaler work on the CPU."""

    def make(*_: Any, **__: Any) -> Fabric:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
        return Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])

    return make


def make_fabric(precision: str) -> Fabric:
    if precision == "16-mixed":
        return fabric_in_half_precision(2.0**10)()
    return reid.inference.devices.make_fabric("cpu", precision)  # type: ignore[arg-type]


def losses_and_gradient(model: Muva, job: Job, precision: str) -> tuple[dict[str, float], torch.Tensor]:
    fabric = make_fabric(precision)
    optimizer = image_optimizer(model, job.config.stage2)
    step = ImageStep(model, text_prototypes(model, 8), job.config.stage2)
    step.memory.rows.copy_(F.normalize(torch.randn(step.text.shape, generator=torch.Generator().manual_seed(0)), dim=1))
    module, _ = fabric.setup(step, optimizer)
    batch = next(load_batches(job.bank, [[0, 1, 4, 5, 20, 21]], 0))
    total, measured = module(batch.images, job.labels[batch.indices], batch.visible)
    fabric.backward(total)
    fabric.strategy.precision.unscale_gradients(optimizer)
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return dict(zip(step.measures, measured.tolist(), strict=True)), torch.cat(gradients)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_step_in_half_precision_is_that_of_full_precision(
    start: Start, run_config: Config, tmp_path: Path, precision: str
) -> None:
    model, job = start(run_config(), tmp_path)
    for predictor in model.image_encoder.mask_predictors:  # away from 0, where a rounding error opens a gate
        torch.nn.init.uniform_(predictor.mlp[2].bias, 0.5, 1.5)
    full, gradient = losses_and_gradient(model, job, "32-true")
    model.zero_grad()
    half, rounded = losses_and_gradient(model, job, precision)
    assert half != full
    for name in ("loss", "identity", "memory", "text", "mask_bce", "mask_dice"):
        assert half[name] == pytest.approx(full[name], rel=0.02), name
    assert F.cosine_similarity(gradient, rounded, dim=0) > 0.97
    assert rounded.norm().item() == pytest.approx(gradient.norm().item(), rel=0.1)


@pytest.mark.usefixtures("sources")
def test_a_run_in_bfloat16_keeps_its_weights_in_float32(
    train_run: TrainRun, run_config: Config, tmp_path: Path
) -> None:
    train_run(run_config("precision=bf16-mixed"), tmp_path)
    state = load_checkpoint(tmp_path / "stage2" / "latest.pt")[0]
    assert {tensor.dtype for tensor in state["model"].values() if tensor.is_floating_point()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_overflows_are_skipped_and_the_scaler_is_resumed_bit_for_bit(
    train_run: TrainRun,
    sources: None,
    run_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train_until: TrainUntil,
) -> None:
    monkeypatch.setattr(reid.training.train, "joined", fabric_in_half_precision(2.0**40))  # the first steps overflow
    config = run_config("stage2.epochs=4", "stage2.gradient_clip=5.0")
    train_run(config, tmp_path / "whole")
    train_until(config, tmp_path / "cut", 3)
    train_run(config, tmp_path / "cut")
    whole, cut = (load_checkpoint(tmp_path / name / "stage2" / "latest.pt")[0] for name in ("whole", "cut"))
    assert whole["precision"] == cut["precision"] and whole["precision"]["scale"] < 2.0**40
    assert all(torch.equal(cut["model"][name], tensor) for name, tensor in whole["model"].items())
    assert all(tensor.isfinite().all() for tensor in whole["model"].values())


@pytest.mark.parametrize("limit", [None, 0.01])
def test_gradients_are_clipped_to_the_norm(
    start: Start, run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float | None
) -> None:
    model, job = start(run_config(*([f"stage2.gradient_clip={limit}"] if limit else [])), tmp_path)
    prompts = learn_prompts(model, job)
    norms: list[float] = []

    def measure(optimizer: torch.optim.Adam, *_: Any) -> None:
        gradients = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack(gradients).norm().item())

    monkeypatch.setattr(torch.optim.Adam, "step", measure)
    train_images(model, job, prompts)
    assert norms
    assert all(norm == pytest.approx(limit, rel=1e-3) if limit else norm > 0.1 for norm in norms)


@pytest.mark.usefixtures("sources")
def test_it_is_told_what_trains_what_is_frozen_and_how_long_it_takes(
    train_run: TrainRun, run_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        train_run(run_config("stage1.epochs=1"), tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    stage1, stage2 = (next(line for line in lines if line.startswith(f"stage {n} parameters:")) for n in (1, 2))
    contexts = 8 * 4 * 4 * 16  # identities, granularities, vectors, width
    assert f"all {contexts:,} trained" in stage1 and "image_encoder 0 trained" in stage1
    assert f"prompts 0 trained, {contexts:,} frozen" in stage2 and "text_encoder 0 trained" in stage2
    assert lines.index(stage2) < next(i for i, line in enumerate(lines) if "as measured" in line)


@pytest.mark.usefixtures("sources")
def test_tensorboard_and_csv_hold_the_same_curves(train_run: TrainRun, run_config: Config, tmp_path: Path) -> None:
    train_run(run_config("stage1.epochs=3"), tmp_path)
    for stage in ("stage1", "stage2"):
        board = EventAccumulator(str(tmp_path / stage))
        board.Reload()
        with (tmp_path / stage / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert set(board.Tags()["scalars"]) == rows[0].keys() - {"epoch"}
        for name in board.Tags()["scalars"]:
            points = [(event.step, event.value) for event in board.Scalars(name)]
            assert points == [(int(row["epoch"]), pytest.approx(float(row[name]), rel=1e-5)) for row in rows]
