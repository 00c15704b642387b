"""The checks of gpu_check.py: on a GPU where there is one, and the whole script at a tiny size on the CPU."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

_SCRIPT = importlib.util.spec_from_file_location("gpu_check", Path(__file__).with_name("gpu_check.py"))
assert _SCRIPT and _SCRIPT.loader
gpu_check: Any = importlib.util.module_from_spec(_SCRIPT)
_SCRIPT.loader.exec_module(gpu_check)


@pytest.mark.gpu
@pytest.mark.parametrize("name", gpu_check.CHECKS)
def test_on_the_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    gpu_check.CHECKS[name](gpu_check.Setting("cuda", 10))


def test_the_script_runs_at_a_tiny_size_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, gpu_check.__file__, "--device", "cpu", "--out", str(out)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(out.read_text())
    assert found["gpu"] is False and "nothing is measured" in ended.stdout
    assert found["equal"].keys() == gpu_check.CHECKS.keys()
    assert {"speed", "ratios", "loader", "retrieval", "masks"} <= found.keys()
    assert not [name for section in ("speed", "loader", "retrieval") for name in found[section] if name == "all"]
    assert not [figures for figures in found["equal"].values() if "failed" in figures or "not_run" in figures]
    assert found["loader"]["waiting"]["share_of_time"] >= 0
    assert found["retrieval"]["ranking market"]["mean_ap"] > 0


WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

class Rest(PathFinder):  # of what is installed
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)

ABSENT = {"pyarrow", "duckdb", "fastapi", "scipy", "pandas"}
sys.meta_path = [Rest if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_script_runs_without_what_only_the_data_commands_need(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-c", WITHOUT, gpu_check.__file__, "--device", "cpu", "--out", str(out)]
    command += ["--only", "equal", "loader", "masks", "retrieval"]  # models to be timed need nothing more
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(out.read_text())
    assert [name for name, figures in found["equal"].items() if "not_run" in figures] == ["stage 1, stage 2, scores"]
    assert {"loader", "masks", "retrieval"} <= found.keys()


def test_a_check_that_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setting: Any) -> dict[str, float]:
        gpu_check.require(1 > 2, "the numbers differ")
        return {}

    monkeypatch.setattr(gpu_check, "CHECKS", {"broken": broken, "batches equal": gpu_check.check_batches})
    out = tmp_path / "gpu.json"
    assert gpu_check.main(["--device", "cpu", "--only", "equal", "--out", str(out)]) == 1
    found = json.loads(out.read_text())["equal"]
    assert "the numbers differ" in found["broken"]["failed"] and "failed" not in found["batches equal"]


def test_after_a_lost_context_the_rest_runs_in_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def lost(setting: Any) -> dict[str, float]:
        ran.append("lost")
        monkeypatch.setattr(gpu_check.Setting, "context_is_lost", lambda _: True)
        raise RuntimeError("CUDA error: device-side assert triggered")

    def fine(setting: Any) -> dict[str, float]:
        ran.append("fine")
        return {"value": 1.0}

    def restarted(program: str, command: list[str]) -> None:
        monkeypatch.setattr(gpu_check.Setting, "context_is_lost", lambda _: False)
        assert command[1] == gpu_check.__file__ and "--continue" in command
        codes.append(gpu_check.main(command[2:]))

    codes: list[int] = []
    monkeypatch.setattr(gpu_check, "CHECKS", {"first": fine, "broken": lost, "last": fine})
    monkeypatch.setattr(gpu_check.os, "execv", restarted)
    out = tmp_path / "gpu.json"
    gpu_check.main(["--device", "cpu", "--only", "equal", "--out", str(out)])
    found = json.loads(out.read_text())["equal"]
    assert ran == ["fine", "lost", "fine"] and codes == [1]
    assert "device-side assert" in found["broken"]["failed"] and "new process" in found["broken"]["context_lost"]
    assert found["first"]["value"] == found["last"]["value"] == 1.0
