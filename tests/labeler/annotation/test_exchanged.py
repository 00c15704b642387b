"""Another service on the same address in the middle of a run: none of its answers is written."""

import asyncio
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from labeler.annotation import annotate as annotate_module
from labeler.annotation import client as client_module
from labeler.annotation.annotate import AnnotateOptions, annotate_with
from labeler.annotation.client import GroundingClient, HttpClient, ServiceError, ServiceUnfitError, _Received
from labeler.engines.body_prior import BodyPrior
from labeler.grounding.answers import ImageAnswer, ServiceInfo
from labeler.grounding.engine import EngineIdentity
from labeler.grounding.ground import ground_image
from labeler.service.app import create_app
from labeler.settings import load_settings
from shared.errors import ConfigError
from shared.labels import label_shards, read_labels
from shared.schemas import PARTS

FIRST = EngineIdentity("vllm_server", "first-model", "joint-1")
ONE_AT_A_TIME = AnnotateOptions(connections=1, batch_images=2)


class Named(BodyPrior):
    def __init__(self, identity: EngineIdentity) -> None:
        self.identity = identity


def service(identity: EngineIdentity, **settings) -> httpx.ASGITransport:
    return httpx.ASGITransport(create_app(load_settings(**settings), Named(identity)))


class Exchanged(httpx.AsyncBaseTransport):
    """The first service until it has answered `after` batches, then, after a time without any, the second."""

    def __init__(self, first: httpx.ASGITransport, second: httpx.ASGITransport, after: int) -> None:
        self._first, self._second, self._left = first, second, after
        self._gone = 1

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path != "/v1/ground":
            return await (self._first if self._left > 0 else self._second).handle_async_request(request)
        if self._left > 0:
            self._left -= 1
            return await self._first.handle_async_request(request)
        if self._gone:
            self._gone -= 1
            raise httpx.ConnectError("connection refused")
        return await self._second.handle_async_request(request)


@pytest.mark.parametrize(
    ("identity", "settings"),
    [
        (EngineIdentity("body_prior", "ccp-medians", "none"), {}),
        (EngineIdentity("local", "first-model", "joint-1"), {}),
        (EngineIdentity("vllm_server", "other-model", "joint-1"), {}),
        (EngineIdentity("vllm_server", "first-model", "joint-2"), {}),
        (FIRST, {"missing_parts": "prior"}),
        (FIRST, {"second_look": True}),
        (EngineIdentity("vllm_server", "other-model", "joint-1"), {"max_body_bytes": 100}),  # it refuses all images
    ],
)
async def test_nothing_of_an_exchanged_service_is_written(
    make_dataset, tmp_path: Path, no_pauses, identity: EngineIdentity, settings
) -> None:
    root, manifest = make_dataset(12)
    transport = Exchanged(service(FIRST), service(identity, **settings), after=3)
    async with HttpClient("http://localhost", connections=1, transport=transport) as client:
        with pytest.raises(ServiceUnfitError, match="not the service that this run was started with") as stopped:
            await annotate_with(client, manifest, root, "toy", tmp_path, "r", ONE_AT_A_TIME)
    assert "->" in stopped.value.what and "localhost" in str(stopped.value)
    rows = read_labels(label_shards(tmp_path))
    assert {(row.engine, row.model, row.prompt_version) for row in rows} == {tuple(FIRST.__dict__.values())}
    assert len(rows) == 3 * 2 * len(PARTS) and {row.status for row in rows} == {"ok"}, "what came before stays"


async def test_the_same_service_started_again_goes_on(make_dataset, tmp_path: Path, no_pauses) -> None:
    root, manifest = make_dataset(12)
    transport = Exchanged(service(FIRST), service(FIRST), after=3)
    async with HttpClient("http://localhost", connections=1, transport=transport) as client:
        summary = await annotate_with(client, manifest, root, "toy", tmp_path, "r", ONE_AT_A_TIME)
    assert summary.done_now == 12 and not summary.failed


class Planned(GroundingClient):
    """Answers of the body prior, and an error for the batch of number `breaks`, while the others are answered."""

    def __init__(self, breaks: int) -> None:
        super().__init__(connections=4)
        self._breaks, self._batches = breaks, 0

    async def aclose(self) -> None: ...

    async def _info(self) -> ServiceInfo:
        return ServiceInfo(
            engine="e", model="m", prompt_version="p", parts=PARTS, max_images=2, max_body_bytes=10**7, max_requests=9
        )

    async def _readiness(self) -> float:
        return 1.0

    async def _once(self, images, parts, answered) -> _Received:
        self._batches += 1
        if self._batches == self._breaks:
            raise ServiceError("broken", fix="-")
        answers: list[ImageAnswer] = [
            await ground_image(BodyPrior(), image, parts, max_pixels=10**6, max_attempts=1) for image in images
        ]
        return _Received(answers)


@pytest.mark.parametrize("breaks", [1, 2, 3, 4])
async def test_a_failed_request_does_not_discard_those_that_ended_with_it(
    make_dataset, tmp_path: Path, breaks: int
) -> None:
    root, manifest = make_dataset(8)
    async with Planned(breaks) as client:
        with pytest.raises(ServiceError, match="broken"):
            options = AnnotateOptions(connections=4, batch_images=2)
            await annotate_with(client, manifest, root, "toy", tmp_path, "r", options)
    assert len(read_labels(label_shards(tmp_path))) == 6 * len(PARTS), "the other three batches"


async def test_what_is_waited_for_is_said(caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "WAIT_LINE_S", 0.02)
    monkeypatch.setattr(client_module, "READY_PAUSE_S", 0.05)

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    async with HttpClient("http://me:secret@gone:1", transport=httpx.MockTransport(refuse)) as client:
        with pytest.raises(ServiceError, match="not ready after"):
            await client.wait_ready(0.3)
    lines = [record.message for record in caplog.records if record.message.startswith("waiting ")]
    assert lines and "connection refused" in lines[-1] and "gone:1" in lines[-1] and "secret" not in caplog.text


async def test_a_service_that_hangs_is_not_waited_for_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "READY_ANSWER_S", 0.1)

    class Hangs(Planned):
        async def _readiness(self) -> float:
            await asyncio.Event().wait()
            raise AssertionError

    async with Hangs(0) as client:
        with pytest.raises(ServiceError, match=r"not ready after .* no answer yet"):
            await client.wait_ready(0.1)


async def test_a_hanging_request_is_said_while_it_hangs(make_dataset, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(annotate_module, "WAIT_LINE_S", 0.02)
    monkeypatch.setattr("shared.progress.LOG_INTERVAL_S", 0.02)
    root, manifest = make_dataset(2)

    class Slow(Planned):
        async def _once(self, images, parts, answered) -> _Received:
            await asyncio.sleep(0.3)
            return await super()._once(images, parts, answered)

    async with Slow(0) as client:
        await annotate_with(client, manifest, root, "toy", tmp_path, "r", AnnotateOptions())
    assert "requests in flight" in capsys.readouterr().err


async def test_a_busy_service_is_no_failed_attempt(paint, monkeypatch: pytest.MonkeyPatch) -> None:
    """More refusals than attempts, each with what it asks to wait."""
    pauses: list[float | None] = []
    monkeypatch.setattr(client_module, "pause_s", lambda *_, asked_s, **__: pauses.append(asked_s) or 0.0)
    inner = httpx.ASGITransport(create_app(load_settings(), BodyPrior()))
    left = 12

    async def busy(request: httpx.Request) -> httpx.Response:
        nonlocal left
        if left:
            left -= 1
            return httpx.Response(429, headers={"retry-after": "7"})
        response = await inner.handle_async_request(request)
        return httpx.Response(response.status_code, content=await response.aread(), headers=response.headers)

    async with HttpClient("http://localhost", attempts=2, transport=httpx.MockTransport(busy)) as client:
        (answer,) = await client.ground([paint()], PARTS)
    assert answer.failure is None and pauses == [7.0] * 12


async def test_a_service_that_stays_busy_fails_its_images_in_the_end(paint, no_pauses) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(429))
    async with HttpClient("http://localhost", attempts=3, transport=transport) as client:
        (answer,) = await client.ground([paint()], PARTS)
    assert answer.failure == "engine_error" and answer.retryable


@pytest.mark.parametrize("key", ["padded ", "schlüssel", "line\n"])
def test_a_key_that_no_header_can_carry_is_refused_at_once(key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        HttpClient("http://localhost", SecretStr(key))
    assert key not in str(refused.value)
