"""`dgreid vllm` with the real vLLM: started, killed, started again, taken down by Ctrl-C; no process is left."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.vllm.processes import CPU_FLAGS, ENVIRONMENT, ROOT, SERVED, make_checkpoint

FAMILY = "qwen2.5-vl"
TIMEOUT_S = 400


def of_port(port: int) -> dict[int, str]:
    """Command line by pid of everything that was started to serve this port."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if f"SERVE_PORT={port}\0".encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
    return found


def wait_for(what, process: subprocess.Popen, log: Path):
    deadline = time.monotonic() + TIMEOUT_S
    while not (answer := what()):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:] if log.exists() else ""
        time.sleep(0.2)
    return answer


@pytest.mark.parametrize("kind", [signal.SIGINT])
def test_started_killed_restarted_and_taken_down(tmp_path: Path, kind: signal.Signals) -> None:
    checkpoint = make_checkpoint(FAMILY, tmp_path / FAMILY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, said = tmp_path / "logs" / "vllm-0.log", tmp_path / "said"
    options = ["--replicas", "1", "--port", str(port), "--ready-s", str(TIMEOUT_S), "--logs", str(log.parent)]
    flags = ["--served-model-name", SERVED[FAMILY], *CPU_FLAGS]
    environment = {
        **os.environ,
        "PATH": f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "pipelines", "vllm", str(checkpoint), *options, "--", *flags]

    def is_serving() -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False, timeout=30).status_code == 200
        return False

    with said.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: "ready: LABELER_UPSTREAM_URL" in said.read_text(), process, log)
        before = of_port(port)
        server = next(pid for pid, line in before.items() if "api_server" in line and "vllm_guard" not in line)
        os.kill(server, signal.SIGKILL)
        wait_for(lambda: not before.keys() & of_port(port).keys(), process, log)
        wait_for(is_serving, process, log)
        assert "is started again" in said.read_text()
    finally:
        process.send_signal(kind)
        process.wait(60)
    assert not of_port(port)
