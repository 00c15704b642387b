"""The way to model servers, over a real socket: what comes back, and the name of what does not."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from labeler.engines.replicas import Replicas
from labeler.grounding.engine import EngineDownError, EngineSlowError
from labeler.settings import load_settings

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
    packed = gzip.compress(b'{"packed": true}')
    answers = [sized(OK, b'{"n": 1}'), sized(OK + b"content-encoding: gzip\r\n", packed)]
    async with saying(*answers) as (place, heads), replicas(f"http://me:se%40cret@{place}/v1") as servers:
        assert await servers.ask("/v1/chat/completions", {"a": 1}) == {"n": 1}
        assert await servers.ask("/v1/chat/completions", {"a": 1}) == {"packed": True}
    assert all(head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n") for head in heads) and len(heads) == 2
    sent = httpx.Headers([tuple(line.split(b": ", 1)) for line in heads[0].splitlines()[1:-1]])
    assert sent["authorization"] == "Basic bWU6c2VAY3JldA==" and sent["content-type"] == "application/json"
    assert sent["host"] == place and "accept-encoding" not in sent and "cookie" not in sent


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
        (sized(OK + b"content-encoding: gzip\r\n", b"not packed"), EngineDownError),
        (sized(OK, b"[" * 100_000), EngineDownError),
    ],
)
async def test_what_does_not_come_back_has_a_name(answer: bytes | None, error: type[Exception]) -> None:
    async with saying(answer) as (place, _), replicas(f"http://{place}", answer_timeout_s=0.3) as servers:
        with pytest.raises(error):
            await servers.ask("/v1/chat/completions", {})


async def test_nobody_listens() -> None:
    async with saying() as (place, _):
        pass
    async with replicas(f"http://{place}") as servers:
        with pytest.raises(EngineDownError, match="Connect"):
            await servers.ask("/v1/chat/completions", {})
