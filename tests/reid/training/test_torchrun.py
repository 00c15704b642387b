"""Processes that `torchrun` starts, as on two machines: one process's losses, and all stop and resume together."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reid.config import RunConfig
from reid.evaluation.evaluate import evaluate_run
from reid.evaluation.results import read_results
from reid.inference.devices import started_processes
from reid.model.checkpoint import load_checkpoint
from shared.workspace import Workspace

ROOT = Path(__file__).parents[3]
Config = Callable[..., RunConfig]


def command(config: RunConfig, run: Path) -> list[str]:
    preset = run.parent / "given.yaml"
    preset.write_text(config.model_dump_json())  # JSON is YAML
    return ["-m", "pipelines", "--", "train", config.protocol, "--preset", str(preset), "--run", str(run)]


@contextmanager
def nodes(count: int, arguments: list[str], workspace: Workspace) -> Iterator[list[subprocess.Popen[str]]]:
    """One torchrun per machine; the machines are this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"DATA_ROOT": str(workspace.data_root), "RUNS_ROOT": str(workspace.runs_root)}
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={count}", f"--node-rank={rank}"),
                *("--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}", *arguments),
            ],
            env=environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for rank in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def history(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = load_checkpoint(run / "stage2" / "latest.pt")[1]["history"]
    return found


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "events" not in path.name}


@pytest.mark.usefixtures("sources")
def test_two_machines_compute_and_write_what_one_does_and_resume_after_a_kill(
    workspace: Workspace, run_config: Config, train_run: Callable[[RunConfig, Path], None], tmp_path: Path
) -> None:
    config = run_config("stage2.epochs=12", "stage2.lr=1e-5")
    one, two = (workspace.training_runs / name for name in ("one", "two"))
    one.parent.mkdir(parents=True)
    train_run(config, one)
    arguments = command(config, two)
    with nodes(2, arguments, workspace) as started:
        wait_for(two / "stage2" / "latest.pt", started)
        worker = next(int(child) for child in children(started[1].pid))
        os.kill(worker, signal.SIGKILL)  # one process of the second machine
        codes = [process.wait(timeout=120) for process in started]
    assert all(codes), "every machine's processes stop"
    assert len(history(two)) < 12
    with nodes(2, arguments, workspace) as started:
        told = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], told[0][-3000:]
    assert "trained:" in told[0] and "trained:" not in told[1] and "scan" not in told[1]
    assert files(one) == files(two)
    timed = {"seconds", "images_per_s", "mask_iou", "accuracy"}  # and what jumps by a rounding error
    for single, shared in zip(history(one), history(two), strict=True):
        measured = [{key: value for key, value in row.items() if key not in timed} for row in (single, shared)]
        assert measured[1] == pytest.approx(measured[0], rel=1e-5)
    for stage in ("stage1", "stage2"):
        with (two / stage / "metrics.csv").open() as table:
            assert len(list(csv.DictReader(table))) == (12 if stage == "stage2" else 2)
    alone = shutil.copytree(two, tmp_path / "alone")
    with nodes(2, ["-m", "pipelines", "--", "eval", "--run", str(two)], workspace) as started:
        told = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], told[0][-3000:]
    assert "mAP" in told[0] and "mAP" not in told[1]
    expected, found = evaluate_run(alone, workspace), read_results(two)
    assert files(alone) == files(two)
    for state, scores in expected.scores["gamma"].items():
        assert found.scores["gamma"][state] == pytest.approx(scores, abs=1e-6)


def children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def wait_for(path: Path, started: list[subprocess.Popen[str]]) -> None:
    ends = time.monotonic() + 200
    while not path.exists():
        for process in started:
            assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < ends, f"{path} does not appear"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, (2, 4)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}, (2, 4)),
        ({"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "train"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "bash"}, None),  # a shell in an allocation
    ],
)
def test_what_a_launcher_started_is_read_from_its_environment(
    environment: dict[str, str], expected: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert started_processes() == expected
