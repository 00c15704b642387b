"""Service and stand-in model server as processes of their own, ended with the test."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
STAND_IN = Path(__file__).parent / "stand_in_app.py"


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    log: Path
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def rss_mib(self) -> float:
        """Resident memory now."""
        told = subprocess.run(["ps", "-o", "rss=", "-p", str(self.process.pid)], capture_output=True, check=True)
        return int(told.stdout) / 1024


@contextmanager
def servers(folder: Path) -> Iterator[Callable[..., Server]]:
    """Starts a command that runs uvicorn and waits until it listens; `environment` is added to a clean one.

    All end with the context; their logs are in `folder`.
    """
    started: list[Server] = []

    def begin(*command: str, **environment: str) -> Server:
        log = folder / f"server-{len(started)}.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LABELER_")}
        inherited["LABELER_ENGINE"] = os.environ["LABELER_ENGINE"]  # of all tests
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=file,
                stderr=file,
                env={**inherited, "PYTHONPATH": str(ROOT), **environment},
            )
        started.append(Server(process, log, ""))
        while not (listening := re.search(r"running on (http://[\d.]+:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        started[-1].url = listening[1]
        return started[-1]

    try:
        yield begin
    finally:
        for server in started:
            server.process.kill()
            server.process.wait()


def service_starter(start: Callable[..., Server]) -> Callable[..., Server]:
    """Starts `dgreid serve` with LABELER_* settings, given in lower case."""

    def begin(**settings: object) -> Server:
        variables = {f"LABELER_{name.upper()}": str(value) for name, value in settings.items()}
        return start("-m", "labeler", "serve", **{"LABELER_PORT": "0", **variables})

    return begin


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    with servers(tmp_path) as begin:
        yield begin


@pytest.fixture
def start_service(start: Callable[..., Server]) -> Callable[..., Server]:
    return service_starter(start)


@pytest.fixture
def start_stand_in(start: Callable[..., Server]) -> Callable[..., Server]:
    def begin(port: int = 0) -> Server:
        return start(str(STAND_IN), str(port))

    return begin
