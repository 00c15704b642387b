"""Both clients of the labelling service: readiness, an engine that goes away and comes back, HTTP failures."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from labeler.annotation.annotate import AnnotateOptions, annotate_with
from labeler.annotation.client import HttpClient, ServiceError, ServiceUnfitError
from labeler.engines.body_prior import BodyPrior
from labeler.engines.vllm_server import VllmServer
from labeler.grounding.engine import EngineDownError, EngineError, EngineUnfitError
from labeler.service.app import create_app
from labeler.settings import load_settings
from shared.errors import ConfigError
from shared.images import image_id_of
from shared.labels import label_shards
from shared.schemas import PARTS, LabelStatus

ROOT = Path(__file__).parents[3]


class Scripted(BodyPrior):
    """The body prior, after the failures that `checks` and `answers` hold."""

    def __init__(self, checks=(), answers=()) -> None:
        self.checks, self.answers, self.closed = list(checks), list(answers), 0

    async def check(self) -> None:
        if self.checks:
            raise self.checks.pop(0)

    async def ground(self, image, parts, attempt):
        if self.answers:
            raise self.answers.pop(0)
        return await super().ground(image, parts, attempt)

    async def close(self) -> None:
        self.closed += 1


def down() -> EngineDownError:
    return EngineDownError("not up yet", fix="wait")


async def test_ready_after_the_engine_is(open_client, no_pauses) -> None:
    engine = Scripted(checks=[down(), EngineError("loading", fix="-")])
    async with open_client(load_settings(), engine) as client:
        assert 0.3 < await client.wait_ready(60) < 1
        assert not engine.checks and not engine.closed
    assert engine.closed == 1


async def test_not_ready_in_time_says_why(open_client) -> None:
    async with open_client(load_settings(), Scripted(checks=[down()] * 9)) as client:
        with pytest.raises(ServiceError, match=r"not ready after 0 s: .*not up yet"):
            await client.wait_ready(1)


async def test_an_engine_with_wrong_boxes_is_not_waited_for(open_client) -> None:
    async with open_client(load_settings(), Scripted(checks=[EngineUnfitError("it resizes", fix="-")])) as client:
        with pytest.raises(ServiceUnfitError, match="it resizes"):
            await client.wait_ready(1e9)


async def test_an_engine_that_goes_away_and_comes_back_is_asked_again(open_client, paint, no_pauses) -> None:
    engine = Scripted(answers=[down()] * 5)
    images = [paint(), b"broken", paint(height=130)]
    async with open_client(load_settings(), engine) as client:
        answers = await client.ground(images, PARTS)
    assert not engine.answers
    assert [answer.image_id for answer in answers] == [image_id_of(image) for image in images]
    assert [answer.failure for answer in answers] == [None, LabelStatus.UNREADABLE, None]


async def test_an_engine_that_stays_away_fails_its_images_after_the_attempts(open_client, paint, no_pauses) -> None:
    engine = Scripted(answers=[down()] * 100)
    async with open_client(load_settings(), engine, attempts=3) as client:
        (answer,) = await client.ground([paint()], PARTS)
    assert len(engine.answers) == 97
    assert (answer.failure, answer.error, answer.retryable) == (LabelStatus.ENGINE_ERROR, "not up yet", True)


async def test_wrong_boxes_stop_everything(open_client, paint) -> None:
    async with open_client(load_settings(), Scripted(answers=[EngineUnfitError("it resizes", fix="-")])) as client:
        with pytest.raises(ServiceUnfitError, match="it resizes"):
            await client.ground([paint()], PARTS)


async def test_an_engine_lost_between_two_questions_is_asked_again(open_client, stand_in, paint, no_pauses) -> None:
    server = stand_in()
    settings = load_settings(engine="vllm_server", model=server.model, max_attempts=2)
    async with open_client(settings, VllmServer.from_settings(settings, server.transport)) as client:
        server.script = ["garbage", "500", "500", "500", "good"]
        (healed,) = await client.ground([paint()], PARTS)
        assert set(healed.statuses.values()) == {LabelStatus.OK} and not healed.retryable
        server.script = ["garbage"] + ["500"] * 100
        (lost,) = await client.ground([paint()], PARTS)
    assert set(lost.statuses.values()) == {LabelStatus.UNPARSEABLE}, "half an answer is kept"


async def test_both_say_the_same_of_themselves(open_clients) -> None:
    infos = []
    for opened in open_clients.values():
        async with opened(load_settings(missing_parts="prior"), connections=5) as client:
            assert client.connections == 5
            infos.append(await client.info())
    assert infos[0] == infos[1] and infos[0].missing_parts == "prior"


def test_labelling_in_this_process_needs_no_web_server(make_dataset, tmp_path: Path) -> None:
    from shared.manifest import write_manifest

    root, manifest = make_dataset(2)
    write_manifest(manifest, tmp_path / "toy.parquet")
    script = (
        "import sys\n"
        "for name in ('fastapi', 'starlette', 'uvicorn', 'torch'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from labeler.annotation.annotate import annotate\n"
        "from shared.manifest import ManifestFile\n"
        f"summary = annotate(ManifestFile(Path({str(tmp_path / 'toy.parquet')!r})), Path({str(root)!r}), 'toy', "
        f"Path({str(tmp_path / 'labels')!r}))\n"
        "assert summary.done_now == 2 and not summary.failed\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


async def test_a_service_that_is_absent_or_another_is_named(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(1)

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    async with HttpClient("http://gone:1", transport=httpx.MockTransport(refuse)) as client:
        with pytest.raises(ServiceError, match=r"not ready after 0 s: .*connection refused.*\[http://gone:1"):
            options = AnnotateOptions(ready_timeout_s=0)
            await annotate_with(client, manifest, root, "toy", tmp_path, "r", options)
    other = httpx.MockTransport(lambda request: httpx.Response(200, json={"status": "fine"}))
    async with HttpClient("http://other", transport=other) as client:
        with pytest.raises(ServiceError, match="not that of a labelling service"):
            await client.wait_ready(1e9)
        with pytest.raises(ServiceError, match="not that of a labelling service"):
            await client.info()
    transport = httpx.ASGITransport(create_app(load_settings(api_key="secret"), BodyPrior()))
    for key in (None, SecretStr("wrong")):
        async with HttpClient("http://locked", key, transport=transport) as client:
            with pytest.raises(ServiceError, match="401"):
                await annotate_with(client, manifest, root, "toy", tmp_path, "r")
    assert not label_shards(tmp_path)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8300", "ftp://host", "http://"])
def test_an_address_that_is_no_http_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match="HTTP URL"):
        HttpClient(url)


@pytest.mark.parametrize("damage", ["cut", "shuffled", "503"])
async def test_damaged_responses_are_asked_again_never_believed(paint, no_pauses, damage: str) -> None:
    inner = httpx.ASGITransport(create_app(load_settings(), BodyPrior()))
    faults = 2

    async def spoil(request: httpx.Request) -> httpx.Response:
        nonlocal faults
        response = await inner.handle_async_request(request)
        content = await response.aread()
        if not faults:
            return httpx.Response(200, content=content)
        faults -= 1
        body = response.json()
        body["images"].reverse()
        match damage:
            case "cut":
                return httpx.Response(200, content=content[:-20])
            case "shuffled":
                return httpx.Response(200, json=body)
            case _:
                return httpx.Response(503, headers={"retry-after": "0"})

    images = [paint(), paint(height=130)]
    async with HttpClient("http://bad", transport=httpx.MockTransport(spoil)) as client:
        answers = await client.ground(images, PARTS)
    assert [answer.image_id for answer in answers] == [image_id_of(image) for image in images]
    assert all(status == LabelStatus.OK for answer in answers for status in answer.statuses.values()) and faults == 0


async def test_one_oversized_image_does_not_fail_its_batch(paint) -> None:
    app = create_app(load_settings(max_body_bytes=6000), BodyPrior())
    images = [paint(), paint() + b"\0" * 6000, paint(height=130)]
    async with HttpClient("http://service", transport=httpx.ASGITransport(app)) as client:
        answers = await client.ground(images, PARTS)
    assert [answer.parts[0].status for answer in answers] == ["ok", "engine_error", "ok"]
    assert "more than 6000 bytes" in answers[1].error and not answers[1].retryable
