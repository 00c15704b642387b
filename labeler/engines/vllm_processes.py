"""vLLM servers on this machine, one per GPU: started, waited for, restarted when they die, always taken down.

Each runs under `vllm_guard`, which ends it with all its workers as soon as this process lets go of it or is gone, also
by SIGKILL. Their output goes to one log file each.
"""

import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx

from labeler.grounding.engine import EngineDownError
from labeler.settings import Settings
from shared.errors import ConfigError, DgreidError
from shared.files import make_folder
from shared.terminal import printable

log = logging.getLogger(__name__)

SERVE = Path(__file__).with_name("serve_vllm.sh")
GUARD = Path(__file__).with_name("vllm_guard.py")
WATCH_S = 1.0
WAIT_LINE_S = 10.0  # between two lines about what is waited for
MOST_RESTARTS = 5  # of one server in a row; one that has been ready for STEADY_S counts from zero again
STEADY_S = 600.0
TAIL = 4000  # bytes of a log
ENDS_S = 20.0  # for a guard to end, after which it is killed


class _Server:
    """One of them: its process, address and log."""

    def __init__(self, command: Sequence[str], port: int, log_file: Path, environment: Mapping[str, str]) -> None:
        self.url, self.log_file = f"http://127.0.0.1:{port}", log_file
        self._command, self._environment = command, {**environment, "SERVE_PORT": str(port)}
        self._process: subprocess.Popen[bytes] | None = None
        self.restarts = 0
        self.started = 0.0

    def start(self, *, fresh: bool) -> None:
        self.started = time.monotonic()
        with self.log_file.open("wb" if fresh else "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(GUARD), *self._command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                start_new_session=True,  # Ctrl-C in a terminal is for us alone
            )

    @property
    def ended(self) -> int | None:
        """Its exit code, once it ended."""
        return self._process.poll() if self._process else 0

    def let_go(self) -> None:
        if self._process and self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()

    def end(self) -> None:
        self.let_go()
        if self._process:
            try:
                self._process.wait(ENDS_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=10, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def last_lines(self, count: int = 1) -> str:
        with self.log_file.open("rb") as file:
            file.seek(max(0, self.log_file.stat().st_size - TAIL))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return printable("\n".join(lines[-count:]), keep="\n") or "nothing in its log yet"


class VllmProcesses:
    """A context manager: inside it the servers run, and a thread restarts those that die.

    Args:
        model: as vLLM takes it: a hub name or a folder.
        replicas: servers; 0: one per GPU, one where there is none.
        logs: folder of their log files, `vllm-<number>.log`.
        port: of the first one, the others follow; None: free ones.
        flags: more arguments for each vLLM.
        command: what is run instead of `serve_vllm.sh`; it listens on 127.0.0.1:$SERVE_PORT and answers /health.

    Raises ConfigError when there are fewer GPUs than replicas.
    """

    def __init__(
        self,
        model: str,
        *,
        logs: Path,
        replicas: int = 0,
        port: int | None = None,
        flags: Sequence[str] = (),
        command: Sequence[str] = ("bash", str(SERVE)),
    ) -> None:
        gpus = visible_gpus()
        if gpus and replicas > len(gpus):
            raise ConfigError(f"{replicas} model servers, but {len(gpus)} GPUs", fix=f"ask for {len(gpus)} or fewer")
        count = replicas or max(1, len(gpus))
        make_folder(logs)
        ports = _free_ports(count) if port is None else list(range(port, port + count))
        self._servers = [
            _Server([*command, model, *flags], ports[number], logs / f"vllm-{number}.log",
                    {"CUDA_VISIBLE_DEVICES": gpus[number]} if gpus else {})
            for number in range(count)
        ]  # fmt: skip
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="vllm-watch", daemon=True)

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self._servers]

    def __enter__(self) -> Self:
        try:
            for server in self._servers:
                server.start(fresh=True)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until every server answers, then watch them; every WAIT_LINE_S the log says the last line of theirs.

        Raises EngineDownError when one ended, or is not ready in time.
        """
        started = said = time.monotonic()
        waiting = list(self._servers)
        while waiting:
            for server in list(waiting):
                if server.ended is not None:
                    raise self._failed(server, f"ended with exit code {server.ended} before it was ready")
                if server.is_ready():
                    waiting.remove(server)
            now = time.monotonic()
            if waiting and now - started > timeout_s:
                raise self._failed(waiting[0], f"is not ready after {timeout_s:.0f} s")
            if waiting and now - said >= WAIT_LINE_S:
                said = now
                log.warning("waiting %.0f s for %d of %d model servers; %s: %s", now - started, len(waiting),
                            len(self._servers), waiting[0].log_file.name, waiting[0].last_lines())  # fmt: skip
            if waiting:
                time.sleep(0.2)
        self._watcher.start()

    def close(self) -> None:
        """Take all of them down, with their workers."""
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for server in self._servers:
            server.let_go()  # all at once, then wait
        for server in self._servers:
            server.end()

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_S):
            for server in self._servers:
                if server.ended is None or server.restarts > MOST_RESTARTS:
                    continue
                if time.monotonic() - server.started > STEADY_S:
                    server.restarts = 0
                server.restarts += 1
                if server.restarts > MOST_RESTARTS:
                    log.error("%s ended again and is left alone: %s", server.log_file, server.last_lines())
                    continue
                log.warning("%s ended with exit code %s and is started again: %s", server.log_file.name, server.ended,
                            server.last_lines())  # fmt: skip
                try:
                    server.start(fresh=False)
                except OSError as err:
                    log.error("%s cannot be started: %s", server.log_file, err)

    def _failed(self, server: _Server, what: str) -> DgreidError:
        return EngineDownError(f"vLLM {what}: {server.last_lines(5)}", path=server.log_file,
                               fix="see this log; `pip install vllm` puts vLLM where `python3` finds it")  # fmt: skip


@contextmanager
def started_vllm(settings: Settings, logs: Path) -> Iterator[Settings]:
    """Inside it the model servers of LABELER_START_VLLM run; yields settings that name them, else the given ones.

    Raises ConfigError, EngineDownError when they do not get ready.
    """
    if not settings.start_vllm:
        yield settings
        return
    with VllmProcesses(settings.model, logs=logs, replicas=settings.vllm_replicas) as servers:
        servers.wait_ready(settings.vllm_ready_s)
        yield settings.model_copy(update={"upstream_url": ",".join(servers.urls)})


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, one entry per GPU: those it names already, else all that nvidia-smi lists."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    if not (tool := shutil.which("nvidia-smi")):
        return []
    try:
        listed = subprocess.run([tool, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True,
                                timeout=30, check=True)  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
