import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import reid.training.stage2
import reid.training.steps
from reid.config import RunConfig
from reid.data.person_images import load_batches
from reid.data.transforms import normalised
from reid.model.checkpoint import load_checkpoint
from reid.model.muva import Muva
from reid.training.class_loss import smoothed_cross_entropy
from reid.training.job import Job
from reid.training.losses import mask_bce_loss, mask_dice_loss, text_loss
from reid.training.stage1 import learn_prompts
from reid.training.stage2 import text_prototypes, train_images
from reid.training.steps import ImageStep
from shared.errors import DgreidError

Start = Callable[[RunConfig, Path], tuple[Muva, Job]]
Config = Callable[..., RunConfig]
WEIGHTS = {"identity": 1.0, "memory": 0.5, "text": 2.0, "mask_bce": 3.0, "mask_dice": 0.25}


def run(start: Start, config: RunConfig, folder: Path) -> Muva:
    model, job = start(config, folder)
    train_images(model, job, learn_prompts(model, job))
    return model


def test_a_step_is_the_five_losses_of_the_method(start: Start, run_config: Config, tmp_path: Path) -> None:
    overrides = [f"stage2.losses.{name}={weight}" for name, weight in WEIGHTS.items()]
    model, job = start(run_config(*overrides), tmp_path)
    step = ImageStep(model, text_prototypes(model, 3), job.config.stage2)
    rows = F.normalize(torch.randn(8, model.feature_dim, generator=torch.Generator().manual_seed(0)), dim=1)
    step.memory.rows.copy_(rows)
    batch = job.bank.batch([0, 1, 4, 5, 30, 31])
    labels = job.labels[batch.indices]
    total, measured = step(batch.images, labels, batch.visible)

    features, logits = model.encode_images(normalised(batch.images))  # predicted masks
    necked = model.neck(features)
    text = model.encode_text(torch.arange(8))
    expected = {
        "identity": smoothed_cross_entropy(model.classify(necked), labels, 0.1),
        "memory": smoothed_cross_entropy(F.normalize(necked, dim=1) @ rows.T / 0.01, labels, 0.0),
        "text": text_loss(features, text, labels, 0.1),
        "mask_bce": mask_bce_loss(logits, batch.visible),
        "mask_dice": mask_dice_loss(logits, batch.visible),
    }
    found = dict(zip(step.measures, measured.tolist(), strict=True))
    for name, loss in expected.items():
        assert found[name] == pytest.approx(loss.item(), rel=1e-4), name
    assert total.item() == pytest.approx(sum(WEIGHTS[name] * loss.item() for name, loss in expected.items()), rel=1e-4)
    shown = torch.sigmoid(logits[-1]) > 0.5
    assert found["mask_iou"] == pytest.approx(
        ((shown & batch.visible).sum() / (shown | batch.visible).sum()).item(), abs=1e-6
    )


def test_the_memory_of_an_epoch_is_the_definition(start: Start, run_config: Config, tmp_path: Path) -> None:
    model, job = start(run_config(), tmp_path)
    model.bnneck.running_mean += 0.3  # so that before and after the BatchNorm differ
    found = reid.training.stage2._memory_rows(model, job)
    model.eval()
    for label in range(8):
        rows = []
        for index in torch.where(job.labels == label)[0].tolist():
            one = next(load_batches(job.bank, [[index]], 0))
            with torch.no_grad():
                feature = model.neck(model.encode_images(normalised(one.images), visible=one.visible).features)
            rows.append(F.normalize(feature[0], dim=0))
        assert torch.allclose(found[label], F.normalize(torch.stack(rows).mean(0), dim=0), atol=1e-5)


def test_the_image_side_moves_and_the_text_side_stays(start: Start, run_config: Config, tmp_path: Path) -> None:
    model, job = start(run_config(), tmp_path)
    prompts = learn_prompts(model, job)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_images(model, job, prompts)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"image_encoder.part_tokens", "image_encoder.mask_predictors.0.mlp.2.weight", "classifier.weight"} <= moved
    assert {"bnneck.weight", "bnneck.running_mean", "image_encoder.conv1.weight"} <= moved
    assert not [name for name in moved if name.startswith(("text_encoder.", "prompts.")) or name == "bnneck.bias"]


def test_metrics_have_the_agreed_columns(start: Start, run_config: Config, tmp_path: Path) -> None:
    run(start, run_config(), tmp_path)
    lines = (tmp_path / "stage2" / "metrics.csv").read_text().splitlines()
    assert lines[0] == ("epoch,loss,identity,memory,text,mask_bce,mask_dice,mask_iou,accuracy,lr,seconds,images_per_s")
    assert len(lines) == 3 and list((tmp_path / "stage2").glob("events.*"))


@pytest.mark.parametrize("save_every", [1, 2])
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(
    start: Start, run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: int
) -> None:
    config = run_config("stage2.epochs=4", f"stage2.checkpoint_every={save_every}", "stage2.gradient_clip=1.0")
    run(start, config, tmp_path / "whole")

    def die_in_the_fourth(*args: Any) -> dict[str, Any]:
        row = epoch(*args)
        if args[-1] == 4:
            raise KeyboardInterrupt  # its weights are lost
        return row

    epoch = reid.training.stage2._epoch
    monkeypatch.setattr(reid.training.stage2, "_epoch", die_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run(start, config, tmp_path / "cut")
    monkeypatch.undo()
    torch.manual_seed(99)  # another process would not have the same random state either
    run(start, config, tmp_path / "cut")

    (whole, meta), (cut, cut_meta) = (
        load_checkpoint(tmp_path / name / "stage2" / "latest.pt") for name in ("whole", "cut")
    )
    assert all(torch.equal(cut["model"][name], tensor) for name, tensor in whole["model"].items())
    for index, moments in whole["optimizer"]["state"].items():
        assert all(torch.equal(cut["optimizer"]["state"][index][key], moment) for key, moment in moments.items())
    for row, cut_row in zip(meta["history"], cut_meta["history"], strict=True):
        timed = {"seconds", "images_per_s"}
        assert {k: v for k, v in row.items() if k not in timed} == {k: v for k, v in cut_row.items() if k not in timed}


def test_without_parts_there_are_no_masks_to_learn(start: Start, run_config: Config, tmp_path: Path) -> None:
    run(start, run_config(parts=()), tmp_path)
    header = (tmp_path / "stage2" / "metrics.csv").read_text().splitlines()[0]
    assert "accuracy" in header and "mask" not in header


def test_a_non_finite_loss_stops_and_names_the_batch(
    start: Start, run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reid.training.steps, "text_loss", lambda features, *_: features.sum() * torch.nan)
    with pytest.raises(DgreidError, match="non-finite loss, text in epoch 1, step 1"):
        run(start, run_config(), tmp_path)
    folder = tmp_path / "stage2"
    record = json.loads((folder / "not_finite.json").read_text())
    assert len(record["images"]) == 6 and record["losses"]["text"] == "nan"
    assert record["images"][0].split("/", 1)[0] in {"alpha", "beta"}
    assert not (folder / "latest.pt").exists()
    monkeypatch.undo()
    model, job = start(run_config(), tmp_path)  # the same flips, since they follow from seed, epoch and image
    job.augmented.epoch = 1
    plan = job.batches(job.config.stage2).epoch(1)[0]
    expected = job.augmented.batch(plan)
    saved = torch.load(folder / "not_finite.pt", weights_only=True)
    assert saved.keys() == {"images", "labels", "visible"}
    assert torch.equal(saved["images"], expected.images) and torch.equal(saved["visible"], expected.visible)
    assert torch.equal(saved["labels"], job.labels[torch.tensor(plan)])
    assert record["images"] == [f"{job.data.datasets[index]}/{job.data.paths[index]}" for index in plan]
    step = ImageStep(model, text_prototypes(model, 3), job.config.stage2)
    assert step(saved["images"], saved["labels"], saved["visible"])[0].isfinite()  # what a user would try next


def test_weights_that_broke_in_the_last_step_of_an_epoch_are_not_saved(
    start: Start, run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config()
    steps, update = [], torch.optim.Adam.step

    def break_in_the_last(optimizer: torch.optim.Adam, *arguments: Any) -> Any:
        found = update(optimizer, *arguments)
        steps.append(1)
        if len(steps) == 2 * batches:
            optimizer.param_groups[0]["params"][0].data.fill_(torch.nan)
        return found

    model, job = start(config, tmp_path)
    prompts = learn_prompts(model, job)
    batches = len(job.batches(config.stage2).epoch(1))
    assert batches == len(job.batches(config.stage2).epoch(2))
    monkeypatch.setattr(torch.optim.Adam, "step", break_in_the_last)
    with pytest.raises(DgreidError, match=f"non-finite norm of the weights in epoch 2, step {batches}"):
        train_images(model, job, prompts)
    assert load_checkpoint(tmp_path / "stage2" / "latest.pt")[1]["epoch"] == 1


def test_a_checkpoint_of_other_data_is_refused(
    start: Start, run_config: Config, tmp_path: Path, add_labels: Callable[..., None]
) -> None:
    run(start, run_config(), tmp_path)
    for name in ("alpha", "beta"):
        add_labels(name, "second", {("bounding_box_train/0001_c1s1_000000_00.png", "head"): "absent"})
    with pytest.raises(DgreidError, match="training_set_sha256 differ"):
        run(start, run_config("data.label_run=second"), tmp_path)
