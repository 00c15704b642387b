"""Every option of training that is off in `paper`: it changes what it should, and equals the slow definition."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reid.training.stage2
from reid.config import RunConfig
from reid.data.person_images import load_batches
from reid.data.transforms import normalised
from reid.evaluation.evaluate import evaluate_run
from reid.inference.embed import bank_features, identity_means
from reid.inference.trained import final_weights
from reid.model.checkpoint import load_checkpoint
from reid.model.muva import Muva
from reid.training.class_loss import smoothed_cross_entropy
from reid.training.job import Job
from reid.training.losses import IdentityMemory, mask_bce_loss, mask_dice_loss, text_loss
from reid.training.stage1 import learn_prompts
from reid.training.stage2 import fill_neck, text_prototypes, train_images
from reid.training.steps import ImageStep
from shared.errors import ConfigError
from shared.schemas import LabelStatus
from shared.workspace import Workspace

Start = Callable[[RunConfig, Path], tuple[Muva, Job]]
Config = Callable[..., RunConfig]
TrainRun = Callable[[RunConfig, Path], None]
TrainUntil = Callable[[RunConfig, Path, int], None]
ABSENT = {(f"bounding_box_train/000{person}_c1s1_000000_00.png", "head"): LabelStatus.ABSENT for person in (1, 2, 3, 4)}
EVERYTHING = [
    *("data.crop_padding=4", "data.erasing=0.5", "data.colour_jitter=0.2", "data.validation_share=0.25"),
    *("stage2.ema_decay=0.8", "stage2.accumulate=2", "stage2.balance_domains=true", "stage2.epochs=4"),
    *("stage2.fill_neck=true", "stage2.text_temperature=25"),
    "stage1.balance_domains=true",
]


def losses_of(path: Path) -> list[float]:
    return [row["loss"] for row in load_checkpoint(path / "stage2" / "latest.pt")[1]["history"]]


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize(
    "override",
    [
        "data.crop_padding=4",
        "data.erasing=1.0",
        "data.colour_jitter=0.5",
        "data.validation_share=0.25",
        "stage2.text_temperature=25",
        "stage2.fill_neck=true",
        "stage2.accumulate=2",
        "stage2.balance_domains=true",
        "stage1.balance_domains=true",
    ],
)
def test_an_option_changes_the_training(train_run: TrainRun, run_config: Config, tmp_path: Path, override: str) -> None:
    small = ["stage2.epochs=2", "stage2.identities_per_batch=4", "stage1.identities_per_batch=4"]
    train_run(run_config(*small), tmp_path / "plain")
    train_run(run_config(*small, override), tmp_path / "changed")
    assert losses_of(tmp_path / "plain") != losses_of(tmp_path / "changed")


def test_absent_parts_are_left_out_of_every_loss_of_a_step(
    start: Start, run_config: Config, tmp_path: Path, add_labels: Callable[..., None]
) -> None:
    for name in ("alpha", "beta"):
        add_labels(name, "second", ABSENT)
    model, job = start(run_config("data.label_run=second", "data.leave_out_absent_parts=true"), tmp_path)
    step = ImageStep(model, text_prototypes(model, 3), job.config.stage2, leave_out_absent_parts=True)
    rows = F.normalize(torch.randn(8, model.feature_dim, generator=torch.Generator().manual_seed(0)), dim=1)
    step.memory.rows.copy_(rows)
    batch = job.bank.batch([0, 1, 4, 5, 20, 21])
    present = batch.visible.any(-1)
    assert not present.all() and present[:, 1:].all()
    labels = job.labels[batch.indices]
    found = dict(zip(step.measures, step(batch.images, labels, batch.visible)[1].tolist(), strict=True))

    features, logits = model.encode_images(normalised(batch.images))
    assert logits is not None
    necked, width = model.neck(features), model.feature_dim // 4
    text = text_prototypes(model, 3)
    sums = {"identity": 0.0, "text": 0.0, "memory": 0.0}
    for image, (feature, after, label) in enumerate(zip(features, necked, labels, strict=True)):
        slices = [0, *(part + 1 for part in range(3) if present[image, part])]
        kept = torch.cat([torch.arange(width) + width * place for place in slices])
        scores = model.classifier.weight[:, kept] @ after[kept]
        sums["identity"] += smoothed_cross_entropy(scores[None], label[None], 0.1).item() / 6
        sums["text"] += text_loss(feature[None, kept], text[:, kept], label[None], 0.1).item() / 6
        near = rows[:, kept] @ F.normalize(after[kept], dim=0) / 0.01
        sums["memory"] += F.cross_entropy(near[None], label[None]).item() / 6
    assert {name: found[name] for name in sums} == pytest.approx(sums, rel=1e-4)
    pairs = [(b, r) for b in range(6) for r in range(3) if present[b, r]]
    for name, loss in (("mask_bce", mask_bce_loss), ("mask_dice", mask_dice_loss)):
        each = [loss(logits[:, [b]][:, :, [r]], batch.visible[[b]][:, [r]]).item() for b, r in pairs]
        assert found[name] == pytest.approx(sum(each) / len(each), rel=1e-4)
    plain = ImageStep(model, text, job.config.stage2)
    plain.memory = IdentityMemory(rows, 0.01, 0.2)
    others = dict(zip(plain.measures, plain(batch.images, labels, batch.visible)[1].tolist(), strict=True))
    assert all(others[name] != pytest.approx(found[name], rel=1e-4) for name in (*sums, "mask_bce", "mask_dice"))


def test_a_filled_neck_centres_what_the_images_show(start: Start, run_config: Config, tmp_path: Path) -> None:
    model, _ = start(run_config(), tmp_path)
    features = 3 + 2 * torch.randn(7, model.feature_dim, generator=torch.Generator().manual_seed(0))
    features[2, 5], features[:, 6] = torch.nan, torch.nan
    fill_neck(model, features)
    mean, variance = model.bnneck.running_mean, model.bnneck.running_var
    assert mean is not None and variance is not None
    for column in (0, 5):
        known = features[:, column][~features[:, column].isnan()].tolist()
        middle = sum(known) / len(known)
        assert mean[column].item() == pytest.approx(middle, rel=1e-5)
        spread = sum((value - middle) ** 2 for value in known) / len(known)
        assert variance[column].item() == pytest.approx(spread, rel=1e-5)
    assert (mean[6], variance[6]) == (0, 1), "what no image shows stays as it is"


def test_prototypes_average_a_part_over_the_images_that_show_it(
    start: Start, run_config: Config, tmp_path: Path, add_labels: Callable[..., None]
) -> None:
    for name in ("alpha", "beta"):
        add_labels(name, "second", ABSENT)
    model, job = start(run_config("data.label_run=second", "data.leave_out_absent_parts=true"), tmp_path)
    features = bank_features(model, job.bank, job.fabric, after_neck=False, batch_size=5, workers=0, absent_as_nan=True)
    plain = bank_features(model, job.bank, job.fabric, after_neck=False, batch_size=5, workers=0)
    width = model.feature_dim // 4
    present = torch.cat([next(load_batches(job.bank, [[index]], 0)).visible.any(-1) for index in range(len(job.data))])
    assert (~present).sum() == 8
    means = identity_means(features, job.labels, 8)
    for label in range(8):
        mine = (job.labels == label).nonzero().flatten()
        slices = [plain[mine, :width].mean(0)]
        for part in range(3):
            shown = mine[present[mine, part]]
            slices.append(plain[shown, (part + 1) * width : (part + 2) * width].mean(0))
        torch.testing.assert_close(means[label], F.normalize(torch.cat(slices), dim=0), rtol=1e-4, atol=1e-5)


def test_accumulated_gradients_are_the_mean_of_their_batches(
    start: Start, run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config("stage2.accumulate=2", "stage2.epochs=1", "stage2.identities_per_batch=2")
    model, job = start(config, tmp_path)
    prompts = learn_prompts(model, job)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    taken: list[torch.Tensor] = []

    def remember(self: torch.optim.Adam, *_: Any, **__: Any) -> None:
        gradient = model.classifier.weight.grad
        assert gradient is not None
        taken.append(gradient.clone())

    monkeypatch.setattr(torch.optim.Adam, "step", remember)
    train_images(model, job, prompts)

    model.load_state_dict(state)
    step = ImageStep(model, text_prototypes(model, 8), config.stage2)
    step.memory.rows.copy_(reid.training.stage2._memory_rows(model, job))
    model.train()
    each = []
    plan = job.batches(config.stage2).epoch(1)
    for indices in plan:
        batch = job.augmented.batch(indices)
        total, _ = step(batch.images, job.labels[batch.indices], batch.visible)
        model.zero_grad()
        total.backward()
        gradient = model.classifier.weight.grad
        assert gradient is not None
        each.append(gradient.clone())
    assert len(taken) == -(-len(plan) // 2)
    for number, gradient in enumerate(taken):
        group = each[2 * number : 2 * number + 2]
        torch.testing.assert_close(gradient, torch.stack(group).mean(0), rtol=1e-3, atol=1e-6)


def test_the_scored_weights_are_the_averaged_ones_of_the_best_epoch(
    train_run: TrainRun,
    workspace: Workspace,
    sources: None,
    run_config: Config,
    tmp_path: Path,
) -> None:
    folder = workspace.training_runs / "run"
    config = run_config("data.validation_share=0.25", "stage2.ema_decay=0.7", "stage2.keep_every=1", "stage2.epochs=3")
    train_run(config, folder)
    state, meta = load_checkpoint(folder / "stage2" / "latest.pt")
    column = [row["validation_map"] for row in meta["history"]]
    best, best_meta = load_checkpoint(folder / "stage2" / "best.pt")
    assert best_meta["epoch"] == column.index(max(column)) + 1
    kept, _ = load_checkpoint(folder / "stage2" / f"epoch_{best_meta['epoch']:03d}.pt")
    weights = final_weights(kept)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in best["model"].items())
    name = "image_encoder.part_tokens"
    assert not torch.equal(state["averaged"][name], state["model"][name])
    assert len(list((folder / "stage2").glob("epoch_*.pt"))) == 3
    report = evaluate_run(folder, workspace)
    assert "| best epoch on 25% of the source identities, held out |" in report.protocol
    (folder / "stage2" / "best.pt").unlink()
    with pytest.raises(Exception, match="no trained model yet"):
        evaluate_run(folder, workspace)


def test_with_every_option_an_interrupted_run_equals_an_uninterrupted_one(
    train_run: TrainRun,
    sources: None,
    run_config: Config,
    tmp_path: Path,
    train_until: TrainUntil,
) -> None:
    config = run_config(
        *EVERYTHING, domain_contexts={"alpha": "in a street"}, part_agnostic_prompts=True, soft_gate=2.0
    )
    train_run(config, tmp_path / "whole")
    train_until(config, tmp_path / "cut", 3)
    train_run(config, tmp_path / "cut")
    whole, cut = (load_checkpoint(tmp_path / name / "stage2" / "latest.pt")[0] for name in ("whole", "cut"))
    for key in ("model", "averaged"):
        assert all(torch.equal(cut[key][name], tensor) for name, tensor in whole[key].items())


@pytest.mark.usefixtures("sources")
def test_contexts_of_unknown_data_sets_are_refused(train_run: TrainRun, run_config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names gamma, not a source"):
        train_run(run_config(domain_contexts={"gamma": "indoors"}), tmp_path)


@pytest.mark.usefixtures("sources")
def test_compiled_encoders_train_alike(
    train_run: TrainRun, run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_run(run_config("stage2.epochs=1"), tmp_path / "plain")
    compiled: list[str] = []
    modes: list[object] = []

    def traced(module: nn.Module, **options: object) -> None:  # what is traced would be compiled
        compiled.append(type(module).__name__)
        modes.append(options.get("mode"))
        compile_module(module, backend="eager")

    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", traced)
    train_run(run_config("stage2.epochs=1", "compile=true"), tmp_path / "compiled")
    assert compiled == ["MaskedEncoder", "TextEncoder"] and modes == [None, None]
    train_run(run_config("stage2.epochs=1", "compile=true", "cuda_graphs=true"), tmp_path / "graphs")
    assert modes[2:] == ["reduce-overhead", None]
    assert losses_of(tmp_path / "compiled") == pytest.approx(losses_of(tmp_path / "plain"), rel=1e-3)


def test_sampled_identities_hold_those_of_the_batch_and_their_losses_are_the_definitions(
    start: Start, run_config: Config, tmp_path: Path
) -> None:
    model, job = start(run_config("stage2.sampled_identities=7"), tmp_path)
    step = ImageStep(model, text_prototypes(model, 3), job.config.stage2)
    rows = F.normalize(torch.randn(8, model.feature_dim, generator=torch.Generator().manual_seed(0)), dim=1)
    step.memory.rows.copy_(rows)
    batch = job.bank.batch([0, 1, 4, 5])
    labels = job.labels[batch.indices]
    step.draws.manual_seed(5)
    total, measured = step(batch.images, labels, batch.visible)
    found = dict(zip(step.measures, measured.tolist(), strict=True))
    step.draws.manual_seed(5)
    drawn = step._drawn(labels)
    assert drawn is not None
    chosen, places = drawn
    assert len(chosen) == 7 == len(chosen.unique()) and torch.equal(chosen[places], labels)
    features, _ = model.encode_images(normalised(batch.images))
    necked = model.neck(features)
    logits = (necked @ model.classifier.weight.T)[:, chosen]
    similarity = (F.normalize(necked, dim=1) @ rows.T)[:, chosen] / 0.01
    expected = {
        "identity": F.cross_entropy(logits, places, label_smoothing=0.1),
        "memory": F.cross_entropy(similarity, places),
        "text": F.cross_entropy((features @ step.text.T)[:, chosen], places, label_smoothing=0.1),
    }
    for name, loss in expected.items():
        assert found[name] == pytest.approx(loss.item(), rel=1e-4), name
    total.backward()
    moved = (step.memory.rows != rows).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == labels.unique().tolist()
    gradient = model.classifier.weight.grad
    assert gradient is not None and set((gradient != 0).any(dim=1).nonzero()[:, 0].tolist()) == set(chosen.tolist())
    everybody = ImageStep(model, step.text, job.config.stage2.model_copy(update={"sampled_identities": 8}))
    assert everybody._drawn(labels) is None


@pytest.mark.usefixtures("sources")
def test_a_run_with_sampled_identities_resumes_bit_for_bit(
    train_run: TrainRun, run_config: Config, tmp_path: Path, train_until: Callable[..., None]
) -> None:
    config = run_config("stage2.sampled_identities=7", "stage2.epochs=3")
    train_run(config, tmp_path / "whole")
    train_until(config, tmp_path / "cut", 3)
    train_run(config, tmp_path / "cut")
    whole, cut = (load_checkpoint(tmp_path / name / "stage2" / "latest.pt")[0] for name in ("whole", "cut"))
    assert all(torch.equal(cut["model"][name], tensor) for name, tensor in whole["model"].items())
