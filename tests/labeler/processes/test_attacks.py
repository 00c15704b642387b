"""Attacks at the default limits, each on a service in a process of its own: it stays alive, and its memory small."""

import base64
import io
import json
import resource
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from PIL import Image

JSON = {"content-type": "application/json"}
LIVE_S = 5.0  # for one answer of /livez, on a machine that does other things, too; on a quiet one: bench_attacks
MEMORY_MIB = 1000
MEASURED: dict[str, "Watch"] = {}  # name of an attack -> what was seen


# In a process of its own, so that the attacker's threads do not slow what is measured. Arguments: host, port, timeout;
# writes a line per poll until its input ends.
POLL = """
import http.client, select, sys, time
host, port, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
while not select.select([sys.stdin], [], [], 0.05)[0]:
    started = time.monotonic()
    try:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        connection.request("GET", "/livez", headers={"Connection": "close"})
        status = connection.getresponse().status
        connection.close()
    except OSError as err:
        status = type(err).__name__
    print(status, time.monotonic() - started, flush=True)
"""


class Watch:
    """Polls /livez with a new connection each time, and the memory of the service."""

    def __init__(self, server) -> None:
        self._server = server
        self._poller = subprocess.Popen(
            [sys.executable, "-c", POLL, "127.0.0.1", str(server.port), str(LIVE_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.slowest_s = self.most_mib = 0.0
        self.polls = 0
        self.failures: list[str] = []
        self.begun = threading.Event()

    def run(self) -> None:
        for line in self._poller.stdout:
            status, seconds = line.split()
            self.slowest_s = max(self.slowest_s, float(seconds))
            self.polls += 1
            self.begun.set()
            if status != "200":
                self.failures.append(status)
            self.most_mib = max(self.most_mib, self._server.rss_mib())

    def stop(self) -> None:
        self._poller.stdin.close()  # the answer that is waited for still counts

    def ended(self) -> None:
        self._poller.wait()
        self._poller.stdout.close()


@contextmanager
def watched(server, name: str) -> Iterator[Watch]:
    watch = Watch(server)
    thread = threading.Thread(target=watch.run)
    thread.start()
    assert watch.begun.wait(30)
    try:
        yield watch
    finally:
        watch.stop()
        thread.join()
        watch.ended()
    MEASURED[name] = watch
    print(f"{name}: {watch.polls} polls, slowest {watch.slowest_s:.2f} s, {watch.most_mib:.0f} MiB, {watch.failures}")
    assert watch.polls and not watch.failures, watch.failures
    assert watch.most_mib < MEMORY_MIB, f"{watch.most_mib:.0f} MiB"


def full(start: bytes, item: bytes, end: bytes, size: int = 16 * 2**20) -> bytes:
    return start + item * ((size - len(start) - len(end) - 1) // len(item)) + end


def encoded(kind: str, width: int, height: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), 90).save(buffer, kind)
    return buffer.getvalue()


def chunky_png() -> bytes:
    """A PNG whose header is followed by 300,000 empty chunks."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = chunk(b"IHDR", (64).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0)))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"teXt", b"") * 300_000


def as_json(*images: bytes, **rest: object) -> bytes:
    return json.dumps({"images": [base64.b64encode(image).decode() for image in images], **rest}).encode()


BODIES: dict[str, Callable[[], bytes]] = {
    "numbers": lambda: full(b'{"images":[', b"1,", b"1]}"),
    "nulls": lambda: full(b'{"images":[', b"null,", b"1]}"),
    "lists": lambda: full(b'{"images":[', b"[],", b"1]}"),
    "objects": lambda: full(b'{"images":[', b"{},", b"1]}"),
    "bad base64": lambda: full(b'{"images":[', b'"?",', b'"?"]}'),
    "one bad base64": lambda: full(b'{"images":["', b"?", b'"]}'),
    "tiny images": lambda: full(b'{"images":[', b'"AAAA",', b'"AAAA"]}'),
    "unknown parts": lambda: full(b'{"images":["AAAA"],"parts":[', b'"a","b",', b'"c"]}'),
    "one long part": lambda: full(b'{"images":["AAAA"],"parts":["', b"x", b'"]}'),
    "unknown fields": lambda: b"{" + b",".join(b'"%x":1' % n for n in range(1_400_000)) + b"}",
    "one long field": lambda: full(b'{"', b"x", b'":1}'),
    "escapes": lambda: full(b'{"images":["', b"\\u003f", b'"]}'),
    "nested": lambda: full(b'{"images":', b"[", b""),
    "spaces": lambda: full(b"{", b" ", b"}"),
    "digits": lambda: full(b'{"images":[', b"9", b"]}"),
}


def test_bodies_of_many_values(start_service) -> None:
    service = start_service()

    def post(content: bytes) -> httpx.Response:
        return httpx.post(f"{service.url}/v1/ground", content=content, headers=JSON, timeout=120)

    for kind, make in BODIES.items():
        content = make()
        assert len(content) <= 16 * 2**20
        with watched(service, kind), ThreadPoolExecutor(4) as pool:
            for response in pool.map(post, [content] * 4):
                assert response.status_code in (400, 422, 429) and len(response.content) < 2000, kind


@pytest.mark.parametrize("kind", ["json", "form"])
def test_many_full_bodies_at_once(start_service, kind: str) -> None:
    service = start_service()
    image = b"x" * (11 * 2**20)
    content, headers = as_json(image), JSON
    if kind == "form":
        start = b'--b\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n'
        content, headers = start + image + b"\r\n--b--", {"content-type": "multipart/form-data; boundary=b"}

    def post(_: int) -> int:
        return httpx.post(f"{service.url}/v1/ground", content=content, headers=headers, timeout=120).status_code

    with watched(service, f"full {kind}"), ThreadPoolExecutor(24) as pool:
        statuses = list(pool.map(post, range(48)))
    assert set(statuses) <= {200, 429} and 200 in statuses
    assert post(0) == 200, "the memory is given back"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("webp", "ok"),
        ("png", "ok"),
        ("alpha", "ok"),
        ("16 bits", "ok"),
        ("tall", "unreadable"),
        ("wide", "unreadable"),
        ("chunks", ""),
    ],
)
def test_images_of_many_pixels_in_few_bytes(start_service, kind: str, status: str) -> None:
    image = {
        "webp": lambda: encoded("WEBP", 4000, 3000),
        "png": lambda: encoded("PNG", 3000, 4000),
        "alpha": lambda: encoded("PNG", 3000, 4000, "RGBA"),
        "16 bits": lambda: encoded("PNG", 3000, 4000, "I;16"),
        "tall": lambda: encoded("PNG", 1, 12_000_000),
        "wide": lambda: encoded("PNG", 12_000_000, 1),
        "chunks": chunky_png,
    }[kind]()
    count = 64 if kind != "chunks" else 3
    service = start_service()
    content = as_json(*[image] * count)
    with watched(service, kind):
        response = httpx.post(f"{service.url}/v1/ground", content=content, headers=JSON, timeout=300)
    assert response.status_code == 200, response.text
    found = {part["status"] for answer in response.json()["images"] for part in answer["parts"]}
    assert not status or found == {status}


@contextmanager
def sockets(port: int, count: int, said: bytes = b"") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            if said:
                one.sendall(said)
            opened.append(one)
        yield opened


HEAD = b"POST /v1/ground HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("idle", b""),
        ("half a head", b"GET /livez HTTP/1.1\r\nhost: 127"),
        ("slow body", HEAD + b"content-length: 1000000\r\n\r\n{"),
        ("slow chunks", HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{"),
        ("kept alive", b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"),
    ],
)
def test_sockets_that_say_nothing_at_1024_descriptors(start, name: str, said: bytes) -> None:
    service = start(
        "-c",
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024)); "
        "from labeler.__main__ import main; import sys; sys.argv = ['labeler', 'serve']; main()",
        LABELER_PORT="0",
    )
    _descriptors(3000)
    with watched(service, name), sockets(service.port, 1100, said):
        for _ in range(10):
            response = httpx.post(f"{service.url}/v1/ground", content=as_json(b"x"), headers=JSON, timeout=20)
            assert response.status_code == 200
            time.sleep(0.1)
    assert service.log.stat().st_size < 2**20, service.log.read_text()[-1000:]


def test_a_head_has_a_deadline(start_service) -> None:
    service = start_service()
    with sockets(service.port, 2) as (idle, slow):
        slow.sendall(b"GET /livez")
        until = time.monotonic() + 60
        for one in (idle, slow):
            one.settimeout(max(1.0, until - time.monotonic()))
            assert one.recv(100) == b"", "closed without an answer"


def test_slow_bodies_hold_no_place(start_service) -> None:
    service = start_service(max_requests=4)
    slow = HEAD + b"content-length: 1000000\r\n\r\n" + b" " * 500_000
    with sockets(service.port, 40, slow):
        response = httpx.post(f"{service.url}/v1/ground", content=as_json(b"x"), headers=JSON, timeout=20)
    assert response.status_code == 200


def test_slow_bodies_make_room_for_quick_ones(start_service) -> None:
    """They fill the memory that bodies may take, and lose it to whoever sends at once."""
    service = start_service()
    slow = HEAD + b"content-length: 16000000\r\n\r\n" + b" " * 15_000_000
    with watched(service, "slow and large"), sockets(service.port, 8, slow):
        content = as_json(b"x" * 2**20)
        response = httpx.post(f"{service.url}/v1/ground", content=content, headers=JSON, timeout=20)
        assert response.status_code == 200


def _descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
