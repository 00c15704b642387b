import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import reid.training.prompt_state
import reid.training.stage1
from reid.config import RunConfig
from reid.data.person_images import load_batches
from reid.data.transforms import normalised
from reid.inference.embed import bank_features, identity_means
from reid.model.checkpoint import load_checkpoint, load_tensors, save_checkpoint
from reid.model.muva import Muva
from reid.training.curves import Curves
from reid.training.job import Job
from reid.training.optimizer import prompt_optimizer
from reid.training.prompt_state import SMALL_BYTES, PromptState, SparingWrites
from reid.training.stage1 import learn_prompts, load_prompts
from reid.training.stage2 import train_images
from reid.training.steps import PromptStep
from shared.errors import DgreidError

Start = Callable[[RunConfig, Path], tuple[Muva, Job]]
Config = Callable[..., RunConfig]


def test_prototypes_are_the_definition(start: Start, run_config: Config, tmp_path: Path) -> None:
    model, job = start(run_config(), tmp_path)
    labels, rows = job.labels, []
    model.eval()
    with torch.no_grad():
        for index in range(len(job.data)):  # one image at a time, pseudo-label masks, before the BatchNorm
            one = next(load_batches(job.bank, [[index]], 0))
            rows.append(model.encode_images(normalised(one.images), visible=one.visible).features[0])
    expected = torch.stack(
        [
            F.normalize(torch.stack([f for f, y in zip(rows, labels, strict=True) if y == k]).mean(0), dim=0)
            for k in range(8)
        ]
    )
    model.train()
    found = bank_features(model, job.bank, job.fabric, after_neck=False, batch_size=5, workers=0)
    assert model.training
    assert torch.allclose(identity_means(found, labels, 8), expected, atol=1e-5)


def test_the_loss_of_a_batch_is_the_formula(start: Start, run_config: Config, tmp_path: Path) -> None:
    model, _ = start(run_config(), tmp_path)
    prototypes = F.normalize(torch.randn(8, model.feature_dim, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = torch.tensor([3, 3, 0, 5, 5, 5])
    slow: list[Tensor] = []
    for label in labels:
        text = F.normalize(model.encode_text(label[None]), dim=1)[0]
        slow.append(-(prototypes @ text).log_softmax(dim=0)[label])
    assert torch.allclose(
        PromptStep(model, prototypes)(*labels.unique(return_inverse=True)), torch.stack(slow).mean(), atol=1e-6
    )


def test_only_prompts_move_and_the_file_says_whose_they_are(start: Start, run_config: Config, tmp_path: Path) -> None:
    model, job = start(run_config("stage1.epochs=6", "stage1.lr=0.05"), tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = learn_prompts(model, job)
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved == ["prompts.contexts"]
    tensors, marks = load_tensors(path)
    assert torch.equal(tensors["contexts"], model.prompts.contexts)
    assert marks["identities_sha256"] == job.data.identities_sha256 and len(marks["sha256"]) == 64
    lines = (tmp_path / "stage1" / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,lr,seconds" and len(lines) == 7
    assert float(lines[-1].split(",")[1]) < float(lines[1].split(",")[1])
    assert list((tmp_path / "stage1").glob("events.*"))
    assert not (tmp_path / "stage1" / "latest.pt").exists()


def test_an_interrupted_stage_equals_an_uninterrupted_one(
    start: Start, run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config("stage1.epochs=4")
    whole, job = start(config, tmp_path / "whole")
    learn_prompts(whole, job)

    def save_twice_then_die(path: Path, state: Any, meta: Any) -> None:
        if len(meta["history"]) > 2:
            raise KeyboardInterrupt
        save(path, state, meta)

    save = reid.training.prompt_state.save_checkpoint
    monkeypatch.setattr(reid.training.prompt_state, "save_checkpoint", save_twice_then_die)
    with pytest.raises(KeyboardInterrupt):
        learn_prompts(*start(config, tmp_path / "cut"))
    monkeypatch.undo()
    assert len(load_checkpoint(tmp_path / "cut" / "stage1" / "latest.pt")[1]["history"]) == 2
    continued, job = start(config, tmp_path / "cut")
    learn_prompts(continued, job)
    assert torch.equal(continued.prompts.contexts, whole.prompts.contexts)
    epochs = [line.split(",")[0] for line in (tmp_path / "cut" / "stage1" / "metrics.csv").read_text().splitlines()]
    assert epochs == ["epoch", "1", "2", "3", "4"]


@pytest.mark.parametrize("part", [0, 3, 7])
def test_a_stage_killed_between_two_parts_of_its_state_resumes_from_the_epoch_before(
    start: Start, run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    config = run_config("stage1.epochs=3")
    whole, job = start(config, tmp_path / "whole")
    learn_prompts(whole, job)
    monkeypatch.setattr(reid.training.prompt_state, "PART_BYTES", 1)  # every identity is a part
    save, folder = reid.training.prompt_state.save_tensors, tmp_path / "cut" / "stage1"

    def save_or_die(path: Path, tensors: Any, marks: Any) -> None:
        if path.name == f"latest_0002_{part:05d}.safetensors":
            raise KeyboardInterrupt
        save(path, tensors, marks)

    monkeypatch.setattr(reid.training.prompt_state, "save_tensors", save_or_die)
    with pytest.raises(KeyboardInterrupt):
        learn_prompts(*start(config, tmp_path / "cut"))
    monkeypatch.setattr(reid.training.prompt_state, "save_tensors", save)
    parts = sorted(path.name for path in folder.glob("latest_*"))
    assert len(parts) == 8 + part and len(load_checkpoint(folder / "latest.pt")[1]["history"]) == 1
    continued, job = start(config, tmp_path / "cut")
    learn_prompts(continued, job)
    assert torch.equal(continued.prompts.contexts, whole.prompts.contexts)
    assert not list(folder.glob("latest*"))


def test_a_state_whose_parts_do_not_belong_together_is_refused(
    start: Start, run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reid.training.prompt_state, "PART_BYTES", 1)
    model, job = start(run_config(), tmp_path)
    contexts = model.prompts.contexts
    optimizer = prompt_optimizer(model, run_config().stage1)
    state = PromptState(tmp_path, contexts, optimizer, job.fabric, {})
    contexts.grad = torch.ones_like(contexts)
    for epoch in (1, 2):
        optimizer.step()
        state.save([{"epoch": epoch}])
        if epoch == 1:
            earlier = (tmp_path / "latest_0001_00003.safetensors").read_bytes()
    assert len(list(tmp_path.glob("latest_*"))) == 8
    part = tmp_path / "latest_0002_00003.safetensors"
    for content in (earlier, b"", None):
        part.unlink() if content is None else part.write_bytes(content)
        with pytest.raises(DgreidError, match=r"another state|cannot read") as caught:
            state.restore()
        assert part.name in str(caught.value) and "delete the latest.pt" in str(caught.value)


def test_a_state_of_an_earlier_version_in_one_file_is_resumed(start: Start, run_config: Config, tmp_path: Path) -> None:
    model, _ = start(run_config(), tmp_path)
    contexts, config = model.prompts.contexts, run_config().stage1
    optimizer = prompt_optimizer(model, config)
    contexts.grad = torch.ones_like(contexts)
    optimizer.step()
    history = [{"epoch": 1, "loss": 1.0}]
    old = {"prompts": model.prompts.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(tmp_path / "latest.pt", old, {"training_set_sha256": "x", "history": history})
    other, job = start(run_config(), tmp_path)
    optimizer_of_other = prompt_optimizer(other, config)
    marks = {"training_set_sha256": "x"}
    found = PromptState(tmp_path, other.prompts.contexts, optimizer_of_other, job.fabric, marks).restore()
    assert found == history and torch.equal(other.prompts.contexts, contexts)
    for name, value in optimizer.state[contexts].items():
        assert torch.equal(optimizer_of_other.state[other.prompts.contexts][name], value)


def test_a_stage_told_to_end_writes_the_epoch_that_it_would_have_left_out(
    start: Start, run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config("stage1.epochs=4")
    whole, job = start(config, tmp_path / "whole")
    learn_prompts(whole, job)
    monkeypatch.setattr(reid.training.prompt_state, "SMALL_BYTES", 0)
    monkeypatch.setattr(SparingWrites, "is_due", lambda self, last: last)
    before = signal.getsignal(signal.SIGTERM)
    add = Curves.add

    def told(self: Curves, row: Any) -> None:
        add(self, row)
        if row["epoch"] == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Curves, "add", told)
    with pytest.raises(KeyboardInterrupt):
        learn_prompts(*start(config, tmp_path / "cut"))
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(load_checkpoint(tmp_path / "cut" / "stage1" / "latest.pt")[1]["history"]) == 2
    monkeypatch.undo()
    continued, job = start(config, tmp_path / "cut")
    learn_prompts(continued, job)
    assert torch.equal(continued.prompts.contexts, whole.prompts.contexts)


def test_finished_prompts_are_used_again_without_opening_an_image(
    start: Start, run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = learn_prompts(*start(run_config(), tmp_path))
    monkeypatch.setattr(reid.training.stage1, "bank_features", None)
    model, job = start(run_config(), tmp_path)
    assert learn_prompts(model, job) == path
    load_prompts(model, path, job.data.identities_sha256)
    assert torch.equal(model.prompts.contexts, load_tensors(path)[0]["contexts"])


def test_prompts_of_other_identities_are_refused(start: Start, run_config: Config, tmp_path: Path) -> None:
    model, job = start(run_config(), tmp_path)
    path = learn_prompts(model, job)
    fewer, other = start(run_config(protocol="alpha2gamma"), tmp_path / "other")
    with pytest.raises(DgreidError, match="identities_sha256 differ") as caught:
        train_images(fewer, other, path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "other" / "stage2").exists()


def test_a_large_state_is_written_so_rarely_that_it_costs_a_twentieth_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("reid.training.prompt_state.time.monotonic", lambda: now[0])
    small, large = SparingWrites(1000), SparingWrites(10 * SMALL_BYTES)
    written = []
    for epoch in range(1, 101):
        now[0] += 1.0  # an epoch's second
        assert small.is_due(False)
        if large.is_due(epoch == 100):
            with large:
                now[0] += 0.5
            written.append(epoch)
    assert written[0] == 1 and written[-1] == 100 and 9 <= len(written) <= 12
