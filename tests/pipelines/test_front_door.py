"""The command itself: help, version, completion, mistyped names, and what it must not import."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.__main__ import COMMANDS, _load, run
from pipelines.runs import newest_run
from pipelines.terminal import as_called
from shared.errors import DataError
from shared.workspace import Workspace

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "lightning_fabric", "open_clip", "transformers", "scipy", "matplotlib", "cv2", "fastapi", "uvicorn")


def imported_by(*arguments: str) -> set[str]:
    """Packages in memory when the command has ended."""
    script = (
        "import json, sys\n"
        "from pipelines.__main__ import run\n"
        f"code = run({list(arguments)!r})\n"
        "print(json.dumps([code, sorted({name.partition('.')[0] for name in sys.modules})]), file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    code, modules = json.loads(ended.stderr.splitlines()[-1])
    assert code in (0, 2), ended.stderr
    return set(modules)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["trian"],
        ["datasets"],
        ["sql"],
        ["sql", "3dpes", "select 1"],
        ["train", "3dpes2caviarr"],
        ["train", "3dpes2caviar", "--preset", "tinny"],
        ["train", "3dpes2caviar", "stage2.epoch=1", "--preset", "tiny"],
        ["train", "3dpes2caviar", "--preset", "tiny"],
        ["eval", "--run", "nothing"],
        ["report", "--run", "nothing"],
        ["compare", "nothing"],
        ["manifest", "3dpse"],
    ],
    ids=" ".join,
)
def test_arguments_are_checked_before_anything_heavy_is_imported(workspace: Workspace, arguments: list[str]) -> None:
    assert not imported_by(*arguments) & set(HEAVY)


@pytest.mark.parametrize(("package", "command"), [("httpx", ["label", "3dpes"]), ("torch", ["doctor"])])
def test_a_package_that_is_not_installed_is_named(package: str, command: list[str]) -> None:
    script = (
        f"import sys\nsys.modules[{package!r}] = None\nfrom pipelines.__main__ import run\nsys.exit(run({command!r}))"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert f"the package {package} is not installed\n  fix: pip install 'dgreid[all]'" in ended.stderr


def test_bare_dgreid_prints_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    said = capfd.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)
    assert run(["--version"]) == 0
    assert capfd.readouterr().out.startswith("dgreid")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_their_own_help_says(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    command = _load(name)
    assert command.help.partition("\n\n")[0].replace("\n", " ") == COMMANDS[name][1]
    assert run([name, "--help"]) == 0
    assert f"Usage: dgreid {name}" in capfd.readouterr().out


def test_completion_of_commands_and_options() -> None:
    def completed(words: str) -> str:
        environment = {**os.environ, "_DGREID_COMPLETE": "complete_bash", "COMP_WORDS": words}
        environment |= {"COMP_CWORD": str(words.count(" "))}
        command = [sys.executable, "-m", "pipelines"]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout

    assert set(completed("dgreid tra").split()) == {"train", "train-clip", "train-grounder"}
    assert "--preset" in completed("dgreid train --pre")


def test_mistyped_names_are_guessed(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    started(workspace, "first", trained=True)
    for arguments, guess in {
        ("lable", "3dpes"): "label",
        ("label", "3dpse"): "3dpes",
        ("train", "3dpes2cavair"): "caviar",
        ("train", "3dpes2caviar", "--preset", "pokcet"): "pocket",
        ("train", "3dpes2caviar", "stage2.epoch=1"): "epochs",
        ("eval", "--run", "frist"): "first",
    }.items():
        assert run(list(arguments)) == 2
        assert f"id you mean '{guess}'" in capfd.readouterr().err


def started(workspace: Workspace, name: str, *, trained: bool) -> Path:
    folder = workspace.training_runs / name
    (folder / "stage1").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    if trained:
        (folder / "stage1" / "latest.pt").write_bytes(b"")
    return folder


def test_the_newest_run_is_the_one_that_trained_last(workspace: Workspace) -> None:
    with pytest.raises(DataError, match="no training run yet"):
        newest_run(workspace)
    first = started(workspace, "first", trained=True)
    second = started(workspace, "second", trained=True)
    now = time.time()
    os.utime(first / "stage1" / "latest.pt", (now - 100, now - 100))
    started(workspace, "failed", trained=False)
    (first / "report.html").write_text("a report that was written later")
    assert newest_run(workspace) == second


def test_a_training_that_fails_leaves_no_run(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither a wrong argument nor what only shows when the model is built."""
    assert run(["label", "3dpes"]) == 0
    for overrides in (
        ["model.weights_file=/nowhere.pt", "model.weights_sha256=0"],
        ["model.domain_contexts={viper: x}"],
    ):
        assert run(["train", "3dpes2caviar", *overrides, "--preset", "tiny"]) == 2
    assert not workspace.training_runs.exists()
    assert run(["eval"]) == 2
    assert "no training run yet" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("written", "called"),
    [
        ("fix: dgreid label a; dgreid label b", "fix: .venv/bin/dgreid label a; .venv/bin/dgreid label b"),
        ("URL=http://x:1 dgreid label ...", "URL=http://x:1 .venv/bin/dgreid label ..."),
        ("/opt/dgreid label, dgreid.egg-info and dgreid 1.2", "/opt/dgreid label, dgreid.egg-info and dgreid 1.2"),
    ],
)  # fmt: skip
def test_printed_commands_can_be_run_as_printed(written: str, called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DGREID_CALLED_AS", raising=False)
    assert as_called(written) == written
    monkeypatch.setenv("DGREID_CALLED_AS", ".venv/bin/dgreid")
    assert as_called(written) == called
