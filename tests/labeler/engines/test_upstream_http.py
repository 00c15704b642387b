"""The way to model servers, over a real socket: what comes back, and the name of what does not."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from labeler.engines.bounded_http import MAX_REPLY
from labeler.engines.replicas import Replicas
from labeler.engines.vllm_server import family_of_served
from labeler.grounding.engine import EngineDownError, EngineSlowError
from labeler.settings import load_settings
from shared.errors import ConfigError

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


def sized(head: bytes, body: bytes) -> bytes:
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


@asynccontextmanager
async def saying(*answers: bytes | None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """(host and port, heads of the requests) of a server that gives these answers in turn; None: it never does.

    An answer without a length, or shorter than it says, ends with the connection.
    """
    heads: list[bytes] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while left:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            heads.append(head)
            length = int(dict(line.lower().split(b": ") for line in head.splitlines()[1:-1]).get(b"content-length", 0))
            await reader.readexactly(length)
            answer = left.pop(0)
            if answer is None:
                await reader.read()
                break
            writer.write(answer)
            await writer.drain()
            if answer.endswith(b"cut"):
                break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}", heads


@asynccontextmanager
async def replicas(url: str, **settings) -> AsyncIterator[Replicas]:
    servers = Replicas.from_settings(load_settings(engine="vllm_server", upstream_url=url, **settings))
    yield servers
    await servers.close()


async def test_questions_share_a_connection_and_say_what_they_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # must never be asked
    answers = [sized(OK, b'{"n": 1}'), sized(OK + b"content-encoding: identity\r\n", b'{"n": 2}')]
    async with saying(*answers) as (place, heads), replicas(f"http://me:se%40cret@{place}/v1") as servers:
        assert await servers.ask("/v1/chat/completions", {"a": 1}) == {"n": 1}
        assert await servers.ask("/v1/chat/completions", {"a": 1}) == {"n": 2}
    assert all(head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n") for head in heads) and len(heads) == 2
    sent = httpx.Headers([tuple(line.split(b": ", 1)) for line in heads[0].splitlines()[1:-1]])
    assert sent["authorization"] == "Basic bWU6c2VAY3JldA==" and sent["content-type"] == "application/json"
    assert sent["host"] == place and sent["accept-encoding"] == "identity" and "cookie" not in sent


async def test_a_redirect_is_no_answer_and_is_not_followed() -> None:
    async with saying(sized(OK, b"{}")) as (elsewhere, heads):
        moved = sized(b"HTTP/1.1 307 Moved\r\nlocation: http://%s/\r\n" % elsewhere.encode(), b"")
        async with saying(moved) as (place, _), replicas(f"http://{place}") as servers:
            with pytest.raises(Exception, match="307"):
                await servers.ask("/v1/chat/completions", {})
        assert not heads


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (None, EngineSlowError),
        (OK + b"content-length: 1000\r\n\r\n{ cut", EngineDownError),
        (b"cut", EngineDownError),
        (b"SSH-2.0-OpenSSH_9.6\r\n cut", EngineDownError),
        (sized(OK + b"content-encoding: gzip\r\n", gzip.compress(b'{"packed": true}')), EngineDownError),
        (sized(OK + b"content-encoding: zstd\r\n", b"{}"), EngineDownError),
        (
            sized(OK + b"content-encoding: identity\r\ncontent-encoding: gzip\r\n", gzip.compress(b'{"packed": true}')),
            EngineDownError,
        ),
        (sized(OK + b"content-encoding: \r\nContent-Encoding: deflate\r\n", b"{}"), EngineDownError),
        (sized(OK, b" " * (MAX_REPLY + 1)), EngineDownError),
        (OK + b"transfer-encoding: chunked\r\n\r\n" + b"100000\r\n%s\r\n" % (b" " * 2**20) * 5, EngineDownError),
        (sized(OK, b"[" * 100_000), EngineDownError),
    ],
)
async def test_what_does_not_come_back_has_a_name(answer: bytes | None, error: type[Exception]) -> None:
    async with saying(answer) as (place, _), replicas(f"http://{place}", answer_timeout_s=0.3) as servers:
        with pytest.raises(error):
            await servers.ask("/v1/chat/completions", {})


ENDLESS = {
    "body": (OK + b"content-length: 1000000\r\n\r\n", b" "),
    "head": (OK + b"x-a: ", b"a"),
    "nothing": (b"", b"\r\n"),
    "interim": (b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"),
    "chunks": (OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "chunk extension": (OK + b"transfer-encoding: chunked\r\n\r\n5;x=", b"a"),
}


@asynccontextmanager
async def endless(kind: str, pause_s: float = 0.05) -> AsyncIterator[str]:
    """A server whose answer to anything comes piece by piece, and never to its end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, piece = ENDLESS[kind]
        with suppress(ConnectionError):
            writer.write(first)
            while True:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"


QUICK = {"answer_timeout_s": 0.3, "connect_timeout_s": 0.3, "probe_timeout_s": 0.3}


@pytest.mark.parametrize("kind", ENDLESS)
async def test_an_answer_that_trickles_ends_at_the_deadline(kind: str) -> None:
    """Every byte comes in time, all of them never do."""
    async with endless(kind) as url, replicas(url, **QUICK) as servers, asyncio.timeout(20):
        with pytest.raises(EngineSlowError):
            await servers.ask("/v1/chat/completions", {})


@pytest.mark.parametrize("kind", ENDLESS)
async def test_a_model_list_that_trickles_does_not_hold_the_start(kind: str) -> None:
    async with endless(kind) as url, asyncio.timeout(20):
        settings = load_settings(engine="vllm_server", model="mine", upstream_url=url, **QUICK)
        with pytest.raises(ConfigError, match="LABELER_FAMILY"):
            await asyncio.to_thread(family_of_served, settings)


async def test_nobody_listens() -> None:
    async with saying() as (place, _):
        pass
    async with replicas(f"http://{place}") as servers:
        with pytest.raises(EngineDownError, match="Connect"):
            await servers.ask("/v1/chat/completions", {})
