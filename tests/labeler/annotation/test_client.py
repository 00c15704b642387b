"""Both clients of the labelling service: readiness, an engine that goes away and comes back, HTTP failures."""

import asyncio
import gzip
import json
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from labeler.annotation import client as client_module
from labeler.annotation.annotate import AnnotateOptions, annotate_with
from labeler.annotation.client import HttpClient, ServiceError, ServiceUnfitError
from labeler.engines.body_prior import BodyPrior
from labeler.engines.bounded_http import LINES
from labeler.engines.vllm_server import VllmServer
from labeler.grounding.engine import EngineDownError, EngineError, EngineUnfitError
from labeler.service.app import create_app
from labeler.settings import load_settings
from shared.errors import ConfigError
from shared.images import image_id_of
from shared.labels import label_shards, read_labels
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
        async with HttpClient("http://localhost", key, transport=transport) as client:
            with pytest.raises(ServiceError, match="401"):
                await annotate_with(client, manifest, root, "toy", tmp_path, "r")
    assert not label_shards(tmp_path)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8300", "ftp://host", "http://"])
def test_an_address_that_is_no_http_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match="HTTP URL"):
        HttpClient(url)


def as_json_only(request: httpx.Request) -> None:
    """The request of a client that knows no lines, or to a service that does not."""
    del request.headers["accept"]


@pytest.mark.parametrize("lines", [False, True], ids=["json", "lines"])
@pytest.mark.parametrize("damage", ["cut", "shuffled", "503", "broken off"])
async def test_damaged_responses_are_asked_again_never_believed(paint, no_pauses, damage: str, lines: bool) -> None:
    inner = httpx.ASGITransport(create_app(load_settings(), BodyPrior()))
    faults = 2

    async def spoil(request: httpx.Request) -> httpx.Response:
        nonlocal faults
        if not lines:
            as_json_only(request)
        response = await inner.handle_async_request(request)
        content = await response.aread()
        kind = {"content-type": response.headers["content-type"]}
        assert (kind["content-type"] == LINES) == lines
        if not faults:
            return httpx.Response(200, content=content, headers=kind)
        faults -= 1
        match damage:
            case "cut":
                return httpx.Response(200, content=content[:-20], headers=kind)
            case "shuffled" if lines:
                swapped = content.replace(b'{"index":0', b'{"index":9').replace(b'{"index":1', b'{"index":0')
                return httpx.Response(200, content=swapped, headers=kind)
            case "shuffled":
                body = response.json()
                body["images"].reverse()
                return httpx.Response(200, json=body)
            case "broken off" if lines:
                first, *_ = content.splitlines(keepends=True)
                problem = {"error": "it went away", "fix": "-", "request_id": "", "status": 503, "retry_after": "0"}
                return httpx.Response(200, content=first + json.dumps(problem).encode() + b"\n", headers=kind)
            case _:
                return httpx.Response(503, headers={"retry-after": "0"})

    images = [paint(), paint(height=130)]
    given = []
    async with HttpClient("http://localhost", transport=httpx.MockTransport(spoil)) as client:
        answers = await client.ground(images, PARTS, lambda *one: given.append(one))
    assert [answer.image_id for answer in answers] == [image_id_of(image) for image in images]
    assert all(status == LabelStatus.OK for answer in answers for status in answer.statuses.values()) and faults == 0
    assert sorted(given, key=lambda one: one[0]) == list(enumerate(answers))


class Hanging(BodyPrior):
    """Answers about the first `answers` images, and about no more."""

    def __init__(self, answers: int) -> None:
        self.answers = answers

    async def ground(self, image, parts, attempt):
        if not self.answers:
            await asyncio.Event().wait()
        self.answers -= 1
        return await super().ground(image, parts, attempt)


@pytest.mark.parametrize("lines", [False, True], ids=["json", "lines"])
async def test_what_is_answered_before_the_end_is_not_asked_again(paint, no_pauses, lines: bool) -> None:
    """With a service that gives up, and then answers: each image is asked about until it has its answer."""
    engine = Hanging(2)
    inner = httpx.ASGITransport(create_app(load_settings(request_timeout_s=0.5), engine))
    asked = []

    async def serve(request: httpx.Request) -> httpx.Response:
        asked.append(len(json.loads(request.content)["images"]))
        if not lines:
            as_json_only(request)
        response = await inner.handle_async_request(request)
        engine.answers = 9
        return response

    images = [paint(height=height) for height in (128, 129, 130, 131)]
    async with HttpClient("http://localhost", transport=httpx.MockTransport(serve)) as client:
        answers = await client.ground(images, PARTS)
    assert [answer.image_id for answer in answers] == [image_id_of(image) for image in images]
    assert not any(answer.failure for answer in answers) and asked == [4, 2]


async def test_wrong_boxes_after_right_ones_stop_everything(open_client, paint) -> None:
    class Turning(BodyPrior):
        async def ground(self, image, parts, attempt):
            if image.height > 128:
                await asyncio.sleep(0.6)
                raise EngineUnfitError("it resizes", fix="-")
            return await super().ground(image, parts, attempt)

    given = []
    async with open_client(load_settings(), Turning()) as client:
        with pytest.raises(ServiceUnfitError, match="it resizes"):
            await client.ground([paint(), paint(height=130)], PARTS, lambda *one: given.append(one))
    assert [index for index, _ in given] == [0]


async def test_one_oversized_image_does_not_fail_its_batch(paint) -> None:
    app = create_app(load_settings(max_body_bytes=6000), BodyPrior())
    images = [paint(), paint() + b"\0" * 6000, paint(height=130)]
    async with HttpClient("http://localhost", transport=httpx.ASGITransport(app)) as client:
        answers = await client.ground(images, PARTS)
    assert [answer.parts[0].status for answer in answers] == ["ok", "engine_error", "ok"]
    assert "more than 6000 bytes" in answers[1].error and not answers[1].retryable


WHO = '{"engine":"body_prior","model":"ccp-medians","prompt_version":"none"}\n'
NONSENSE = [
    *(WHO + line for line in ("", "{}", '{"index":0}', '{"index":' + "9" * 5000 + ',"image":{}}', '{"index":-1}')),
    *(WHO + '{"error":"e","fix":"f","request_id":"","status":' + end for end in ("200}", "1e999}", "503}", "418}")),
    WHO + '{"error":"e","fix":"f","request_id":"","status":503,"retry_after":"\\r\\nä"}',
    *("", "[]", "null", "7", '"text"', "{}", "[" * 60_000, '{"data": []}', '{"data": [1]}', '{"images": null}'),
    *('{"images": [' + "1," * 20_000 + "1]}", '{"data": [' + "{}," * 20_000 + "{}]}", "\0\0", "NaN", "<html>" * 3000),
    *('{"status": "ready", "calibration_iou": ' + iou + "}" for iou in ("NaN", "1e999", "-1", "9" * 400, "[]")),
]


@pytest.mark.parametrize("charset", ["utf-8", "hex", "utf-16", "no-such", "lines"])
@pytest.mark.parametrize("status", [200, 400, 404, 500])
@pytest.mark.parametrize("reply", NONSENSE, ids=lambda reply: reply[:24])
async def test_a_service_that_answers_nonsense_is_one_sentence(
    paint, no_pauses, caplog, reply: str, status: int, charset: str
) -> None:
    headers = {"content-type": LINES if charset == "lines" else f"application/json; charset={charset}"}
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=reply.encode(), headers=headers))
    async with HttpClient("http://localhost", attempts=2, transport=transport) as client:
        for asked in (client.info(), client.wait_ready(0)):
            with pytest.raises(ServiceError) as refused:
                await asked
            assert len(refused.value.what) < 700
        try:
            (answer,) = await client.ground([paint()], PARTS)
        except ServiceError as refused:
            assert len(refused.what) < 700
        else:
            assert answer.failure == LabelStatus.ENGINE_ERROR and len(answer.error) < 700
    assert not [record for record in caplog.records if record.exc_info]


DAMAGED = [
    {"parts": []},
    {"parts": [{"part": "head", "status": "absent"}] * 3},
    {"width": 10**400},
    {"height": -1},
    {"prompt_tokens": 10**30},
    {"completion_tokens": "many"},
    {"error": 7},
    {"box": None},
    {"box": [1, 2, 3]},
    {"box": [1, 2, "x", 4]},
    {"box": [9, 2, 3, 4]},
    {"box": [1, 2, 1e999, 4]},
    {"status": "fine"},
    {"status": "absent"},
    {"score": 7},
    {"attempts": 2**31},
    {"part": "tail"},
    {"flags": "flag"},
]


@pytest.mark.parametrize("lines", [False, True], ids=["json", "lines"])
@pytest.mark.parametrize("change", DAMAGED, ids=str)
async def test_answers_that_no_row_can_hold_are_damaged(
    make_dataset, tmp_path: Path, no_pauses, caplog, change: dict, lines: bool
) -> None:
    """The service is ours until its third answer; no row of the damaged ones has a box, the others are written."""
    root, manifest = make_dataset(4)
    inner = httpx.ASGITransport(create_app(load_settings(), BodyPrior()))
    batches = 0

    async def spoil(request: httpx.Request) -> httpx.Response:
        nonlocal batches
        if not lines:
            as_json_only(request)
        response = await inner.handle_async_request(request)
        content = await response.aread()
        batches += request.url.path == "/v1/ground"
        kind = {"content-type": response.headers["content-type"]}
        if batches < 3 or request.url.path != "/v1/ground":
            return httpx.Response(response.status_code, content=content, headers=kind)
        *first, body = [json.loads(line) for line in content.splitlines()]
        for image in [body["image"]] if lines else body["images"]:
            for key, value in change.items():
                (image if key in image else image["parts"][0])[key] = value
        text = "\n".join(json.dumps(line, separators=(",", ":")) for line in [*first, body])
        return httpx.Response(200, content=text, headers=kind)

    options = AnnotateOptions(batch_images=1, failed_share_limit=1, connections=1)
    async with HttpClient(
        "http://localhost", connections=1, attempts=2, transport=httpx.MockTransport(spoil)
    ) as client:
        await annotate_with(client, manifest, root, "toy", tmp_path / "labels", "r", options)
    rows = read_labels(label_shards(tmp_path / "labels"))
    assert Counter(row.status for row in rows) == {"ok": 2 * len(PARTS), "engine_error": 2 * len(PARTS)}
    assert {row.raw_text for row in rows if row.status == "engine_error"} == {"a damaged response"}
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("content_type", ["application/json", LINES])
@pytest.mark.parametrize("kind", ["packed", "endless", "trickle", "lines", "silent", "huge length"])
async def test_a_response_is_not_unpacked_and_has_an_end(
    paint, no_pauses, monkeypatch, kind: str, content_type: str
) -> None:
    monkeypatch.setattr(client_module, "ANSWER_S", 0.3)
    monkeypatch.setattr(client_module, "INFO_ANSWER_S", 0.3)
    heads, sent = [], 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        ok = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n" % content_type.encode()
        with suppress(ConnectionError):
            match kind:
                case "packed":
                    body = gzip.compress(b" " * 10**7)
                    writer.write(ok + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                case "huge length":
                    writer.write(ok + b"content-length: %d\r\n\r\n[" % 10**15)
                case "endless" | "trickle" | "lines":
                    writer.write(ok + b"content-length: %d\r\n\r\n" % 10**12)
                    while True:
                        piece = b"\n" * 2**16 if kind == "lines" else b" " * (2**16 if kind == "endless" else 1)
                        writer.write(piece)
                        sent += len(piece)
                        await writer.drain()
                        await asyncio.sleep(0.02 if kind == "trickle" else 0)
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, asyncio.timeout(60):
        host, port = server.sockets[0].getsockname()
        async with HttpClient(f"http://{host}:{port}", attempts=2) as client:
            with pytest.raises(ServiceError, match=r"encoded response|of over|Timeout"):
                await client.info()
            (answer,) = await client.ground([paint()], PARTS)
            assert answer.failure == LabelStatus.ENGINE_ERROR
    assert all(b"accept-encoding: identity" in head.lower() for head in heads) and sent < 2**26
