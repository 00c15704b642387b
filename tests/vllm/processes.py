"""The real vLLM on the CPU with a tiny model, and the labelling service over it, as processes to start and kill."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-vllm"
VLLM_PYTHON = ENVIRONMENT / "bin" / "python"
NO_ENVIRONMENT = (
    "" if (ENVIRONMENT / ".installed").exists() else "the vLLM environment is absent: make test-vllm builds it"
)
SERVED = {"qwen2.5-vl": "tiny/Qwen2.5-VL-Random", "qwen3-vl": "tiny/Qwen3-VL-Random"}  # names tell the family
CPU_FLAGS = ("--enforce-eager", "--dtype", "bfloat16", "--max-num-seqs", "32")  # compiling takes a minute here
LOG_TAIL = 4000  # characters


class ServerFailedError(Exception):
    """A server ended, or was not ready in time; the message ends with the tail of its log."""


class Server:
    """One HTTP server on a loopback port of its own, started as often as wanted.

    Args:
        command: run in the project's root; `{port}` in an argument becomes the port.
        ready_path: answers 200 when it can be used.
    """

    def __init__(self, command: Sequence[str], log: Path, *, environment: Mapping[str, str], ready_path: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._command = [word.replace("{port}", str(port)) for word in command]
        self._environment = {key: value.replace("{port}", str(port)) for key, value in environment.items()}
        self._log, self._ready_url = log, self.url + ready_path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env={**os.environ, **self._environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a kill reaches its workers too
            )

    def wait_ready(self, timeout_s: float) -> float:
        """Seconds waited. Raises ServerFailedError when it ended or is not ready after `timeout_s`."""
        started = time.monotonic()
        while True:
            waited = time.monotonic() - started
            if self._process is None or self._process.poll() is not None:
                raise ServerFailedError(f"ended after {waited:.0f} s\n{self.log_tail()}")
            if waited > timeout_s:
                raise ServerFailedError(f"not ready after {waited:.0f} s\n{self.log_tail()}")
            try:
                if httpx.get(self._ready_url, timeout=30, trust_env=False).status_code == httpx.codes.OK:
                    return waited
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.5)

    def kill(self) -> None:
        """SIGKILL to the server and its workers, at once."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def cpu_s(self) -> float:
        """Seconds of processor time that it and its workers have used so far, all threads, as Linux keeps it."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has just ended
                fields = stat.read_text().rpartition(")")[2].split()
                if self._process and int(fields[3]) == self._process.pid:  # the session that it was started in
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-LOG_TAIL:] if self._log.exists() else ""

    def _end(self, kind: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        _signal_group(process.pid, signal.SIGKILL)  # workers that outlived it
        process.wait()


def make_checkpoint(family: str, folder: Path) -> Path:
    command = [VLLM_PYTHON, Path(__file__).with_name("make_checkpoint.py"), family, folder]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    made = subprocess.run(command, capture_output=True, text=True, env=environment)
    if made.returncode:
        raise ServerFailedError(f"no checkpoint of {family} was made\n{made.stderr[-LOG_TAIL:]}")
    return folder


@contextmanager
def tiny_vllm(family: str, checkpoint: Path, log: Path, *flags: str, timeout_s: float = 600) -> Iterator[Server]:
    """vLLM with the flags of labeler/engines/serve_vllm.sh, ready."""
    script = str(ROOT / "labeler" / "engines" / "serve_vllm.sh")
    command = [script, str(checkpoint), "--served-model-name", SERVED[family], "--port", "{port}", *CPU_FLAGS, *flags]
    environment = {
        "PATH": f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    yield from _running(Server(command, log, environment=environment, ready_path="/health"), timeout_s)


@contextmanager
def labelling_service(upstream: str, served: str, log: Path, **settings: str) -> Iterator[Server]:
    """The service over a server, alive; `settings` are LABELER_ variables without that prefix, lower case."""
    given = {"engine": "vllm_server", "port": "{port}", "upstream_url": upstream, "model": SERVED[served], **settings}
    given |= {"min_calibration_iou": "0"}  # random weights see nothing where it is
    environment = {f"LABELER_{name.upper()}": value for name, value in given.items()}
    command = [sys.executable, "-m", "labeler", "serve"]
    yield from _running(Server(command, log, environment=environment, ready_path="/livez"), 60)


def _running(server: Server, timeout_s: float) -> Iterator[Server]:
    server.start()
    try:
        server.wait_ready(timeout_s)
        yield server
    finally:
        server.stop()


def _signal_group(group: int, kind: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # nobody of it is left
        os.killpg(group, kind)
