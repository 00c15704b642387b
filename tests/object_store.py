"""A real S3 server for the tests, and what stands before it: a proxy that can be cut, slow or failing."""

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BUCKET = "people"
REFUSED = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>InvalidAccessKeyId</Code><Message>The AWS Access Key Id "
    b"you provided does not exist in our records.</Message><AWSAccessKeyId>tests-access-key</AWSAccessKeyId></Error>"
)


@dataclass
class Proxy:
    """A TCP proxy in front of a server: one request a connection.

    away: see `leave`. away_after: it leaves by itself after so many puts of names with this in them. delay_s: before
    every answer. failing: share of requests that are answered with 500 or 503, or whose answer is lost after the server
    has done what was asked. refusing: every request is answered as S3 answers a key that it does not know. lose: so
    many answers are lost.
    """

    server: tuple[str, int]
    away: bool = False
    delay_s: float = 0.0
    failing: float = 0.0
    away_after: tuple[int, bytes] | None = None
    refusing: bool = False
    lose: int = 0
    puts: int = 0  # of shards, or of what `away_after` names
    images: int = 0  # that were fetched
    requests: int = 0
    failed: int = 0
    dice: random.Random = field(default_factory=lambda: random.Random(7))

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.port = 0
        self.come_back()

    def come_back(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port, self.away = self._listener.getsockname()[1], False
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def leave(self) -> None:
        """Refuse connections, and answer no request that is under way."""
        self.away = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                request = self._request(client)
                if request:
                    self._answer(client, request)
            except OSError:
                pass

    def _request(self, client: socket.socket) -> bytes:
        """One whole request; it asks the server to close the connection after its answer."""
        client.settimeout(20)
        if self.away:
            return b""
        received = b""
        while b"\r\n\r\n" not in received:
            if not (part := client.recv(65536)):
                return b""
            received += part
        head, _, body = received.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines[1:])}
        if headers.get(b"expect", b"").lower() == b"100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(headers.get(b"content-length", 0))
        while len(body) < length:
            body += client.recv(65536)
        kept = [line for line in lines if not line.lower().startswith((b"connection:", b"expect:"))]
        return b"\r\n".join([*kept, b"Connection: close", b"", body])

    def _answer(self, client: socket.socket, request: bytes) -> None:
        with self._lock:
            self.requests += 1
            line = request.split(b"\r\n", 1)[0]
            most, named = self.away_after or (None, b"/part-")
            self.puts += line.startswith(b"PUT") and named in line
            self.images += line.startswith(b"GET") and b".jpg" in line
            if most is not None and self.puts > most and not self.away:
                self.leave()
            fails, lost = self.dice.random() < self.failing, self.dice.random() < 0.5
            if self.lose:
                self.lose, fails, lost = self.lose - 1, True, True
            self.failed += fails
        if self.away:
            return
        if self.refusing:
            client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nConnection: close\r\n"
                           b"Content-Length: %d\r\n\r\n%s" % (len(REFUSED), REFUSED))  # fmt: skip
            return
        time.sleep(self.delay_s)
        if fails and not lost:
            code = self.dice.choice((b"500 Internal Server Error", b"503 Slow Down"))
            client.sendall(b"HTTP/1.1 " + code + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        with socket.create_connection(self.server) as server:
            server.sendall(request)
            while part := server.recv(65536):
                if fails:  # the server has done it, and nobody is told
                    return
                client.sendall(part)


@contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """Address of moto's S3 server in this process, with an empty bucket."""
    pytest.importorskip("moto.server", reason="needs moto (pip install 'dgreid[dev]')")
    pytest.importorskip("s3fs", reason="needs s3fs (pip install 'dgreid[s3]')")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def moto() -> Iterator[tuple[str, int]]:
    with s3_server() as address:
        yield address


@pytest.fixture
def proxy(moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of an empty bucket, to which the usual environment variables point."""
    import boto3
    import s3fs

    credentials = {"AWS_ACCESS_KEY_ID": "tests-access-key", "AWS_SECRET_ACCESS_KEY": "tests-secret-key"}
    for name, value in {**credentials, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    client = boto3.client("s3", endpoint_url=f"http://{moto[0]}:{moto[1]}")
    client.create_bucket(Bucket=BUCKET)
    found = Proxy(moto)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{found.port}")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield found
    finally:
        if not found.away:
            found.leave()
        bucket = boto3.resource("s3", endpoint_url=f"http://{moto[0]}:{moto[1]}").Bucket(BUCKET)
        bucket.objects.all().delete()
        bucket.delete()
        s3fs.S3FileSystem.clear_instance_cache()


def give_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that are made from now on ask twice, not five times with longer and longer pauses."""
    import s3fs

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    s3fs.S3FileSystem.clear_instance_cache()


def upload(folder: Path, prefix: str, address: tuple[str, int]) -> None:
    """Put a folder into the bucket, with boto3 and not with our own code."""
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://{address[0]}:{address[1]}")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder).as_posix()}")


def keys(prefix: str, address: tuple[str, int]) -> list[str]:
    import boto3

    bucket = boto3.resource("s3", endpoint_url=f"http://{address[0]}:{address[1]}").Bucket(BUCKET)
    return [one.key for one in bucket.objects.filter(Prefix=prefix)]


def kill_after(proxy: Proxy, puts: int, delay_s: float, code: str) -> None:
    """Run Python code in a process of its own, over a slow connection, until it has put so much; then SIGKILL."""
    proxy.delay_s = delay_s
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ, stdout=subprocess.DEVNULL)
    try:
        while proxy.puts < puts and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        proxy.delay_s = 0.0
    assert proxy.puts >= puts, "it ended by itself"
