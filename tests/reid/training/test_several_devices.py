"""Two processes on the CPU give the gradients and losses of one."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from reid.config import RunConfig
from reid.model.checkpoint import load_checkpoint
from reid.protocols.protocol import parse_protocol
from reid.training.train import train
from shared.errors import ConfigError
from shared.schemas import LabelStatus
from shared.workspace import Workspace

Config = Callable[..., RunConfig]

CHILD = """
import sys, torch, yaml
from pathlib import Path
from reid.training import stage2
from reid.config import parse_config
from reid.data.person_images import load_batches
from reid.training.job import make_job
from reid.model.muva import build_model
from reid.training.optimizer import image_optimizer
from reid.inference.devices import mean_over_processes, share_of
from reid.protocols.protocol import parse_protocol
from reid.training.train import train
from reid.data.training_set import build_training_set
from shared.workspace import Workspace

torch.set_num_threads(1)
given, data_root, runs, out = map(Path, sys.argv[1:5])
config = parse_config({**yaml.safe_load(given.read_text()), "devices": int(sys.argv[5])}, "test")
workspace = Workspace(data_root, runs)
protocol = parse_protocol(config.protocol, data_root)
data = build_training_set(protocol, config.data, config.model.parts, workspace)
model = build_model(config.model, len(data.identities), seed=0)
job = make_job(config, data, workspace, out, model.grid)
optimizer = image_optimizer(model, config.stage2)
text = stage2.text_prototypes(model, 8)
step = stage2.ImageStep(model, text, config.stage2, leave_out_absent_parts=config.data.leave_out_absent_parts)
module, _ = job.fabric.setup(step, optimizer)
step.memory.rows.copy_(stage2._memory_rows(model, job))
model.train()
first = job.batches(config.stage2).epoch(1)[0]
batch = next(load_batches(job.bank, [share_of(first, job.fabric)], 0))
total, measured = module(batch.images, job.labels[batch.indices], batch.visible)
job.fabric.backward(total)
measured = mean_over_processes(measured)
gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
state = {"gradients": gradients, "measured": measured, "memory": step.memory.rows, "mean": model.bnneck.running_mean}
torch.save(state, out / f"rank{job.fabric.global_rank}.pt")
train(protocol, config, workspace, out / "run")
"""


def run(
    devices: int, config: RunConfig, workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, torch.Tensor]]:
    """What each process wrote; a single one is this process."""
    out.mkdir()
    (out / "child.py").write_text(CHILD)
    (out / "given.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    given = [out / "child.py", out / "given.yaml", workspace.data_root, workspace.runs_root, out, devices]
    arguments = [str(value) for value in given]
    if devices == 1:
        monkeypatch.setattr(sys, "argv", arguments)
        exec(compile(CHILD, "child", "exec"), {})
        return [torch.load(out / "rank0.pt")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    children = [
        subprocess.Popen(
            [sys.executable, *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **paths, **place, "NODE_RANK": "0", "LOCAL_RANK": str(rank)},
        )
        for rank in range(devices)
    ]
    for child in children:
        told = child.communicate(timeout=300)[1]
        assert child.returncode == 0, told[-3000:]
    return [torch.load(out / f"rank{rank}.pt") for rank in range(devices)]


@pytest.mark.usefixtures("sources")
def test_two_processes_equal_one(
    workspace: Workspace,
    run_config: Config,
    add_labels: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent = {
        (f"bounding_box_train/000{person}_c1s1_000000_00.png", "legs"): LabelStatus.ABSENT for person in (1, 2, 3)
    }
    for name in ("alpha", "beta"):
        add_labels(name, "second", absent)
    options = ["data.label_run=second", "data.leave_out_absent_parts=true", "data.embed_batch=7", "stage2.accumulate=2"]
    config = run_config(*options, "data.validation_share=0.25", "stage2.ema_decay=0.5")
    (one,) = run(1, config, workspace, tmp_path / "one", monkeypatch)
    for rank in run(2, config, workspace, tmp_path / "two", monkeypatch):
        for key in ("measured", "memory", "mean"):
            torch.testing.assert_close(rank[key], one[key], rtol=1e-4, atol=1e-5)
        assert rank["gradients"].keys() == one["gradients"].keys()
        for name, gradient in one["gradients"].items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(rank["gradients"][name], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-6)
    stage2 = [tmp_path / devices / "run" / "stage2" for devices in ("one", "two")]
    histories = [load_checkpoint(folder / "latest.pt")[1]["history"] for folder in stage2]
    for single, shared in zip(*histories, strict=True):
        timed = {"seconds", "images_per_s", "mask_iou", "validation_map"}  # and what jumps by a rounding error
        assert {k: v for k, v in shared.items() if k not in timed} == pytest.approx(
            {k: v for k, v in single.items() if k not in timed}, rel=1e-2
        )


@pytest.mark.usefixtures("sources")
def test_devices_that_are_not_there_are_refused(workspace: Workspace, run_config: Config, tmp_path: Path) -> None:
    if torch.cuda.device_count() > 1:
        pytest.skip("this machine has several GPUs")
    config = run_config("devices=2").model_copy(update={"device": "cuda"})
    with pytest.raises(ConfigError, match="device=cuda devices=2"):
        train(parse_protocol(config.protocol, workspace.data_root), config, workspace, tmp_path / "run")
