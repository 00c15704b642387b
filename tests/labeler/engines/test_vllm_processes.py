"""Model servers as processes, with a stand-in for vLLM that has a worker of its own: none is ever left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from labeler.engines import vllm_processes
from labeler.engines.vllm_processes import VllmProcesses, started_vllm, visible_gpus
from labeler.grounding.engine import EngineDownError
from labeler.settings import load_settings
from shared.errors import ConfigError

ROOT = Path(__file__).parents[3]
STAND_IN = """
import os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
model, *flags = sys.argv[1:]
print("loading", model, flags, os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
if model == "broken":
    sys.exit("no such model")
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
worker = subprocess.Popen([sys.executable, "-c", stubborn])
print("pids", os.getpid(), worker.pid, flush=True)
if model == "slow":
    time.sleep(600)
class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
HTTPServer(("127.0.0.1", int(os.environ["SERVE_PORT"])), Health).serve_forever()
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(vllm_processes, "WATCH_S", 0.05)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return [sys.executable, str(tmp_path / "stand_in.py")]


def pids(logs: Path) -> list[list[int]]:
    """[server, worker] of every start that the logs tell of."""
    lines = [line for file in sorted(logs.glob("vllm-*.log")) for line in file.read_text().splitlines()]
    return [[int(word) for word in line.split()[1:]] for line in lines if line.startswith("pids ")]


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def nobody_left(logs: Path) -> bool:
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pair in pids(logs) for pid in pair):
        assert time.monotonic() < deadline, pids(logs)
        time.sleep(0.05)
    return True


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    guard = tmp_path / "guard.py"
    guard.write_text(vllm_processes.GUARD.read_text().replace("GRACE_S = 10.0", "GRACE_S = 0.5"))
    monkeypatch.setattr(vllm_processes, "GUARD", guard)


def test_they_start_are_restarted_when_they_die_and_leave_nothing(command, tmp_path: Path) -> None:
    with VllmProcesses("m", logs=tmp_path, replicas=2, flags=["--x"], command=command) as servers:
        servers.wait_ready(60)
        assert len(set(servers.urls)) == 2
        first = pids(tmp_path)
        assert len(first) == 2
        os.kill(first[0][0], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len(pids(tmp_path)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not is_running(first[0][1]), "the worker of the one that died"
        for url in servers.urls:
            while True:
                try:
                    assert httpx.get(url + "/health", trust_env=False).status_code == 200
                    break
                except httpx.ConnectError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
    assert nobody_left(tmp_path)
    assert "loading m ['--x'] None" in (tmp_path / "vllm-0.log").read_text()


def test_one_that_ends_or_is_late_is_said_with_its_log(command, tmp_path: Path, caplog, monkeypatch) -> None:
    with (
        pytest.raises(EngineDownError, match=r"(?s)ended with exit code 1 .*no such model") as failed,
        VllmProcesses("broken", logs=tmp_path, command=command) as servers,
    ):
        servers.wait_ready(60)
    assert "vllm-0.log" in str(failed.value)
    monkeypatch.setattr(vllm_processes, "WAIT_LINE_S", 0.3)
    with (
        pytest.raises(EngineDownError, match="not ready after 5 s"),
        VllmProcesses("slow", logs=tmp_path, command=command) as servers,
    ):
        servers.wait_ready(5)
    assert "for 1 of 1 model servers; vllm-0.log: pids" in caplog.text
    assert pids(tmp_path) and nobody_left(tmp_path)


def test_one_that_dies_again_and_again_is_left_alone(command, tmp_path: Path, caplog) -> None:
    with VllmProcesses("m", logs=tmp_path, command=command) as servers:
        servers.wait_ready(60)
        deadline = time.monotonic() + 60
        while "left alone" not in caplog.text:
            for server, _ in pids(tmp_path):
                if is_running(server):
                    os.kill(server, signal.SIGKILL)
            assert time.monotonic() < deadline, caplog.text
            time.sleep(0.05)
    assert len(pids(tmp_path)) <= 1 + vllm_processes.MOST_RESTARTS and nobody_left(tmp_path)


CHILD = """
import sys, time
from pathlib import Path
from labeler.engines import vllm_processes
from labeler.engines.vllm_processes import VllmProcesses
vllm_processes.GUARD = Path(sys.argv[2])
with VllmProcesses("m", logs=Path(sys.argv[1]), replicas=2, command=sys.argv[3:]) as servers:
    servers.wait_ready(60)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_their_owner_ends_they_end_too(command, tmp_path: Path, kind: signal.Signals) -> None:
    guard = str(vllm_processes.GUARD)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    owner = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), guard, *command], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, env=environment)  # fmt: skip
    assert owner.stdout and owner.stdout.readline() == b"ready\n"
    assert len(pids(tmp_path)) == 2 and all(is_running(pid) for pair in pids(tmp_path) for pid in pair)
    owner.send_signal(kind)
    owner.wait(60)
    assert nobody_left(tmp_path)


def test_each_has_a_gpu_of_its_own_and_none_is_promised_twice(command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc")
    assert visible_gpus() == ["3", "GPU-abc"]
    with pytest.raises(ConfigError, match="3 model servers, but 2 GPUs"):
        VllmProcesses("m", logs=tmp_path, replicas=3, command=command)
    with VllmProcesses("m", logs=tmp_path, command=command) as servers:
        servers.wait_ready(60)
    told = [(tmp_path / f"vllm-{number}.log").read_text() for number in range(2)]
    assert "[] 3\n" in told[0] and "[] GPU-abc\n" in told[1]


def test_the_setting_names_the_servers_to_the_engine(command, tmp_path: Path, monkeypatch) -> None:
    script = tmp_path / "serve.sh"
    script.write_text(f'#!/bin/sh\nexec {command[0]} {command[1]} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(VllmProcesses.__init__, "__kwdefaults__",
                        {**VllmProcesses.__init__.__kwdefaults__, "command": (str(script),)})  # fmt: skip
    monkeypatch.delenv("LABELER_ENGINE", raising=False)
    settings = load_settings(start_vllm=True, model="m", vllm_replicas=2)
    with started_vllm(settings, tmp_path / "logs") as started:
        assert started.engine == "vllm_server" and len(started.upstream_urls) == 2
        assert all(httpx.get(url + "/health", trust_env=False).is_success for url in started.upstream_urls)
    assert len(pids(tmp_path / "logs")) == 2 and nobody_left(tmp_path / "logs")
    with started_vllm(load_settings(), tmp_path) as same:
        assert same == load_settings()
    for given in ({"upstream_url": "http://x"}, {"engine": "local"}):
        with pytest.raises(ConfigError, match="exclude each other"):
            load_settings(start_vllm=True, **given)
