"""The HTTP interface: limits, keys, health, and a batch that survives its worst image."""

import asyncio
import base64
import io
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
import uvicorn
from PIL import Image

from labeler.engines.body_prior import BodyPrior
from labeler.engines.vllm_server import VllmServer
from labeler.grounding.engine import EngineDownError, EngineError, EngineSlowError, EngineUnfitError
from labeler.service import grounding_service, limits, routes
from labeler.service.app import create_app
from labeler.service.limits import bounded_http
from labeler.settings import describe, load_settings
from shared.errors import ConfigError
from shared.geometry import Box
from shared.images import image_id_of
from shared.schemas import PARTS

MULTIPART = "multipart/form-data; boundary=b"


class Scripted(BodyPrior):
    """The prior, failing as told: an exception per image size, and a gate that holds answers back."""

    def __init__(self) -> None:
        self.faults: dict[int, Exception] = {}
        self.gate: asyncio.Event | None = None
        self.asked = self.closed = 0
        self.unready: Exception | None = None

    async def ground(self, image, parts, attempt):
        self.asked += 1
        if self.gate:
            await self.gate.wait()
        if fault := self.faults.get(image.width):
            raise fault
        return await super().ground(image, parts, attempt)

    async def check(self) -> None:
        if self.unready:
            raise self.unready

    async def close(self) -> None:
        self.closed += 1


def client_of(engine=None, **overrides) -> httpx.AsyncClient:
    app = create_app(load_settings(**overrides), engine or Scripted())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


def png(width: int = 64, height: int = 128) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def body(*images: bytes, **rest) -> dict:
    return {"images": [base64.b64encode(image).decode() for image in images], **rest}


async def post(images=(), client=None, **overrides) -> httpx.Response:
    async with client or client_of(**overrides) as http:
        return await http.post("/v1/ground", json=body(*images))


async def test_json_and_multipart_give_the_same_answer() -> None:
    images = [png(64, 128), png(48, 128)]
    async with client_of() as client:
        as_json = await client.post("/v1/ground", json=body(*images, parts=["legs", "head"]))
        files = [("images", ("a.png", image)) for image in images]
        as_form = await client.post("/v1/ground", files=files, data={"parts": "legs, head"})
    assert as_json.status_code == as_form.status_code == 200
    assert as_json.json() == as_form.json()
    answers = as_json.json()["images"]
    assert [answer["image_id"] for answer in answers] == [image_id_of(image) for image in images]
    assert [row["part"] for row in answers[0]["parts"]] == ["legs", "head"]
    assert answers[1]["parts"][0]["box"] == pytest.approx([0.195 * 48, 0.446 * 128, 0.788 * 48, 0.972 * 128])
    assert answers[1]["parts"][0]["raw_box"] == [0.195, 0.446, 0.788, 0.972]


async def test_one_bad_image_fails_alone() -> None:
    engine = Scripted()
    engine.faults = {
        10: EngineError("cannot", fix="-"),
        11: RuntimeError("a bug of ours"),
        12: EngineSlowError("slow", fix="-"),
    }
    images = [png(), b"", png()[:60], png(10), png(11), png(12), png(3000, 3000)]
    response = await post(images, client_of(engine, max_pixels=1_000_000))
    assert response.status_code == 200
    answers = response.json()["images"]
    kinds = ["ok", "unreadable", "unreadable", "engine_error", "engine_error", "engine_error", "unreadable"]
    assert [{row["status"] for row in answer["parts"]} for answer in answers] == [{kind} for kind in kinds]
    assert [answer["retryable"] for answer in answers] == [False] * 5 + [True, False]
    assert "over 1000000 pixels" in answers[6]["error"]


IN_LINES = {"Accept": "application/x-ndjson"}


async def test_lines_say_what_one_answer_says() -> None:
    engine = Scripted()
    engine.faults = {10: EngineError("cannot", fix="-"), 12: EngineSlowError("slow", fix="-")}
    images = [png(), b"", png(10), png(12), png(65)]
    async with client_of(engine) as client:
        whole = (await client.post("/v1/ground", json=body(*images))).json()
        response = await client.post("/v1/ground", json=body(*images), headers=IN_LINES)
        refused = [
            await client.post("/v1/ground", json=bad, headers=IN_LINES) for bad in ({}, body(png(), parts=["x"]))
        ]
    assert response.headers["content-type"] == "application/x-ndjson"
    first, *lines = [json.loads(line) for line in response.content.splitlines()]
    answers = [line["image"] for line in sorted(lines, key=lambda line: line["index"])]
    assert first | {"images": answers} == whole
    assert [one.status_code for one in refused] == [422, 422] and "unknown parts" in refused[1].json()["error"]


@pytest.mark.parametrize(
    ("error", "status"), [(EngineDownError("-", fix="-", retry_after_s=7), 503), (EngineUnfitError("-", fix="-"), 424)]
)
@pytest.mark.parametrize("begun", [False, True])
async def test_a_failure_is_a_status_or_the_last_line(error, status: int, begun: bool, monkeypatch) -> None:
    """Where the first answers were sent already, what would have been the response is the last line."""
    monkeypatch.setattr(routes, "LINES_S", 0.01)
    engine = Scripted()
    engine.faults = {65: error}
    engine.gate = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, engine.gate.set)
    async with client_of(engine) as client:
        response = await client.post("/v1/ground", json=body(*[b""] * begun, png(65)), headers=IN_LINES)
    assert response.status_code == (200 if begun else status)
    told = json.loads(response.content.splitlines()[-1])
    asked = told["retry_after"] if begun else response.headers.get("retry-after")
    assert told["error"] == "-" and asked == ("7" if status == 503 else None)
    assert not begun or told["status"] == status


@pytest.mark.parametrize(("error", "status"), [(EngineDownError, 503), (EngineSlowError, 504)])
async def test_an_engine_that_is_away_is_the_batchs_failure(error, status: int) -> None:
    engine = Scripted()
    engine.faults = {64: error("away", fix="wait")}
    response = await post([png(), b"broken"], client_of(engine))
    assert response.status_code == status
    assert response.headers["retry-after"].isdigit()
    assert response.json()["error"] == "away"


async def test_a_hanging_engine_ends_at_the_deadline() -> None:
    engine = Scripted()
    engine.gate = asyncio.Event()
    assert (await post([png()], client_of(engine, request_timeout_s=0.05))).status_code == 504


@pytest.mark.parametrize("announced", [True, False])
async def test_a_large_body_is_refused_while_it_arrives(announced: bool) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1000
            yield b" " * 1000

    headers = {"content-type": "application/json"} | ({"content-length": "1000000"} if announced else {})
    async with client_of(max_body_bytes=5000) as client:
        response = await client.post("/v1/ground", content=chunks(), headers=headers)
    assert response.status_code == 413
    assert sent <= (1000 if announced else 7000)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 422),
        (b"{}", "application/json", 422),
        (b'{"images": []}', "application/json", 422),
        (b'{"images": ["?"]}', "application/json", 422),
        (b'{"images": ["/etc/passwd"], "path": "x"}', "application/json", 422),
        (json.dumps(body(b"x", parts=["wing"])).encode(), "application/json", 422),
        (json.dumps(body(b"x", parts=[])).encode(), "application/json", 422),
        (json.dumps(body(*[b"x"] * 65)).encode(), "application/json", 422),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 5000, "application/json", 400),
        (b"images=x", "application/x-www-form-urlencoded", 415),
        (b"", "", 415),
        (b"--b\r\nno", "multipart/form-data; boundary=b", 422),
        (b"x", "multipart/form-data", 400),
        (
            b'--b\r\ncontent-disposition: form-data; name="url"\r\n\r\nx\r\n--b--',
            "multipart/form-data; boundary=b",
            422,
        ),
        (b"--b--", "multipart/form-data; boundary=b", 422),
    ],
)
async def test_bad_requests_are_named(content: bytes, kind: str, status: int) -> None:
    async with client_of() as client:
        response = await client.post("/v1/ground", content=content, headers={"content-type": kind})
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "fix", "request_id"} and response.json()["error"]


@pytest.mark.parametrize(
    ("header", "status"),
    [(None, 401), ("Bearer wrong", 401), ("Basic secret", 401), ("Bearer sécret", 401), ("Bearer secret", 200)],
)
async def test_the_key_is_demanded(header: str | None, status: int) -> None:
    headers = {"authorization": header.encode()} if header else {}
    async with client_of(api_key="secret") as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == status
        assert (await client.post("/v1/ground", json=body(png()), headers=headers)).status_code == status
        assert (await client.get("/livez")).status_code == 200


async def test_one_request_too_many_is_429_and_the_place_is_given_back() -> None:
    engine = Scripted()
    engine.gate = asyncio.Event()
    async with client_of(engine, max_requests=2) as client:
        held = [asyncio.create_task(client.post("/v1/ground", json=body(png()))) for _ in range(2)]
        while engine.asked < 2:
            await asyncio.sleep(0)
        refused = await client.post("/v1/ground", json=body(png()))
        assert refused.status_code == 429 and refused.headers["retry-after"].isdigit()
        engine.gate.set()
        assert [(await task).status_code for task in held] == [200, 200]
        assert (await client.post("/v1/ground", json=body(png()))).status_code == 200


async def test_images_in_work_are_bounded() -> None:
    engine = Scripted()
    engine.gate = asyncio.Event()
    async with client_of(engine, max_images_in_work=3) as client:
        task = asyncio.create_task(client.post("/v1/ground", json=body(*[png()] * 10)))
        while engine.asked < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert engine.asked == 3
        engine.gate.set()
        assert len((await task).json()["images"]) == 10


async def test_ready_means_listed_and_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounding_service, "READY_FOR_S", 0.0)
    monkeypatch.setattr(grounding_service, "UNFIT_FOR_S", 0.0)
    engine = Scripted()
    async with client_of(engine) as client:
        engine.unready = EngineDownError("not up", fix="-")
        assert (await client.get("/readyz")).status_code == 503
        engine.unready = None
        engine.faults = {64: EngineError("no images, please", fix="-")}
        assert (await client.get("/readyz")).status_code == 424
        assert (await client.get("/livez")).status_code == 200
        engine.faults, engine.asked = {}, 0
        first, second = await client.get("/readyz"), await client.get("/readyz")
        assert first.status_code == second.status_code == 200 and engine.asked == 1
        assert 0.3 < first.json()["calibration_iou"] < 1
        engine.unready = EngineDownError("gone again", fix="-")
        assert (await client.get("/readyz")).status_code == 503


async def test_a_model_that_cannot_ground_is_not_ready(stand_in) -> None:
    server = stand_in()
    server.always = "garbage"
    settings = load_settings(engine="vllm_server", model=server.model)
    async with client_of(VllmServer.from_settings(settings, server.transport)) as client:
        response = await client.get("/readyz")
    assert response.status_code == 424 and "unparseable" in response.json()["error"]


class Misplaced(Scripted):
    """The prior with its boxes moved down by a share of the image's height."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    async def ground(self, image, parts, attempt):
        answer = await super().ground(image, parts, attempt)
        moved = {
            part: replace(one, image_box=Box(*(side + (n % 2) * self.by * image.height for n, side in enumerate(box))))
            for part, one in answer.parts.items()
            if (box := one.image_box)
        }
        return replace(answer, parts=moved)


@pytest.mark.parametrize(("by", "limit", "status"), [(0, 0.5, 200), (0.1, 0.5, 424), (0.1, 0.2, 200), (0.5, 0, 200)])
async def test_wrong_boxes_of_the_drawn_person_are_not_ready(by: float, limit: float, status: int) -> None:
    async with client_of(Misplaced(by), min_calibration_iou=limit) as client:
        response = await client.get("/readyz")
    assert response.status_code == status, response.text
    if status == 424:
        assert "mean IoU 0." in response.json()["error"] and "MIN_CALIBRATION_IOU" in response.json()["fix"]


async def test_a_model_that_sees_nothing_in_drawings_is_ready_where_that_is_said(stand_in) -> None:
    server = stand_in()
    server._boxes = lambda payload: '{"head":null,"upper_body":null,"legs":null}'
    for limit, status in ((0.5, 424), (0, 200)):
        settings = load_settings(engine="vllm_server", model=server.model, min_calibration_iou=limit)
        async with client_of(VllmServer.from_settings(settings, server.transport), min_calibration_iou=limit) as client:
            assert (await client.get("/readyz")).status_code == status


async def test_readiness_is_asked_of_the_engine_once_for_all_who_ask_us() -> None:
    engine = Scripted()
    checks = 0

    async def check() -> None:
        nonlocal checks
        checks += 1
        await asyncio.sleep(0.01)
        raise EngineDownError("not up", fix="-")

    engine.check = check
    async with client_of(engine) as client:
        statuses = [one.status_code for one in await asyncio.gather(*(client.get("/readyz") for _ in range(40)))]
    assert checks == 1 and set(statuses) == {429, 503} and statuses.count(503) == grounding_service.READY_WAITERS


async def test_request_ids_come_back_when_harmless() -> None:
    async with client_of() as client:
        assert (await client.get("/livez", headers={"x-request-id": "run-7.a"})).headers["x-request-id"] == "run-7.a"
        forged = (await client.get("/livez", headers={"x-request-id": "a b"})).headers["x-request-id"]
        assert forged != "a b" and len(forged) == 32
        assert (await client.get("/nowhere")).json()["request_id"]


async def test_models_says_who_answers_and_the_openapi_page_builds() -> None:
    async with client_of() as client:
        (info,) = (await client.get("/v1/models")).json()["data"]
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert (info["engine"], info["parts"]) == ("body_prior", list(PARTS))
    assert set(paths["/v1/ground"]["post"]["requestBody"]["content"]) == {"application/json", "multipart/form-data"}


async def test_the_engine_is_closed_with_the_app() -> None:
    engine = Scripted()
    app = create_app(load_settings(), engine)
    async with app.router.lifespan_context(app):
        assert engine.closed == 0
    assert engine.closed == 1


def test_settings_mask_secrets_and_name_their_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELER_API_KEY", "hunter2")
    monkeypatch.setenv("LABELER_PORT", "9000")
    lines = {name: (value, origin) for name, value, origin in describe(load_settings())}
    assert lines["LABELER_PORT"] == ("9000", "set") and lines["LABELER_HOST"] == ("127.0.0.1", "default")
    assert "hunter2" not in str(lines) and lines["LABELER_API_KEY"][1] == "set"


@pytest.mark.parametrize(
    ("given", "engine", "model"),
    [
        ({}, "local", "pocket-grounder-2"),
        ({"upstream_url": "http://a:1/v1,http://b:2/"}, "vllm_server", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ({"engine": "vllm_server", "model": "mine"}, "vllm_server", "mine"),
        ({"upstream_url": "http://a:1", "engine": "local"}, "local", "pocket-grounder-2"),
    ],
)
def test_an_address_of_a_model_server_decides_who_answers(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], engine: str, model: str
) -> None:
    monkeypatch.delenv("LABELER_ENGINE")
    settings = load_settings(**given)
    assert (settings.engine, settings.model) == (engine, model)
    origins = {name: origin for name, _, origin in describe(settings)}
    assert origins["LABELER_ENGINE"] == ("set" if "engine" in given else "default")


def test_addresses_of_model_servers_lose_what_is_added_to_them() -> None:
    assert load_settings(upstream_url="http://a:1/v1, http://b:2/,").upstream_urls == ["http://a:1", "http://b:2"]
    assert load_settings().upstream_urls == ["http://127.0.0.1:8000"]


@pytest.mark.parametrize(("name", "value"), [("LABELER_PROT", "1"), ("LABELER_PORT", "many"), ("LABELER_ENGINE", "x")])
def test_wrong_settings_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name.removeprefix("LABELER_").lower() + "|" + name):
        load_settings()


def test_a_model_of_no_known_family_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match="LABELER_FAMILY"):
        create_app(load_settings(engine="vllm_server", model="mystery"))


@pytest.mark.parametrize(
    ("headers", "settings", "status"),
    [
        ({"host": "127.0.0.1:8300"}, {}, 200),
        ({"host": "[::1]:8300"}, {}, 200),
        ({"host": "LOCALHOST"}, {}, 200),
        ({"host": "evil.example"}, {}, 421),
        ({"host": "127.0.0.1.evil.example:8300"}, {}, 421),
        ({"host": "evil.example@127.0.0.1"}, {}, 421),
        ({"host": "127.0.0.1:port"}, {}, 421),
        ({"host": "203.0.113.9"}, {}, 421),
        ({"host": ""}, {}, 421),
        ({"host": "203.0.113.9"}, {"host": "0.0.0.0"}, 200),
        ({"host": "evil.example"}, {"host": "0.0.0.0"}, 421),
        ({"host": "labels.example:8300"}, {"allowed_hosts": "labeler, labels.example"}, 200),
        ({"host": "evil.example"}, {"allowed_hosts": "*"}, 200),
        ({"origin": "http://evil.example"}, {}, 403),
        ({"origin": "null"}, {}, 403),
        ({"origin": "http://localhost:3000"}, {}, 403),
        ({"origin": "http://localhost"}, {}, 200),
        ({"sec-fetch-site": "cross-site"}, {}, 403),
        ({"sec-fetch-site": "same-site"}, {}, 403),
        ({"sec-fetch-site": "none"}, {}, 200),
        ({"sec-fetch-site": "same-origin"}, {}, 200),
    ],
)
async def test_foreign_pages_and_hosts_are_refused(headers: dict[str, str], settings, status: int) -> None:
    async with client_of(**settings) as client:
        for path in ("/livez", "/readyz", "/v1/models", "/metrics", "/openapi.json"):
            response = await client.get(path, headers=headers)
            assert response.status_code == status, (path, response.text)
        response = await client.post("/v1/ground", json=body(png()), headers=headers)
    assert response.status_code == status
    if status != 200:
        assert set(response.json()) == {"error", "fix", "request_id"} and response.headers["x-request-id"]


async def test_nothing_is_redirected_and_no_page_loads_scripts() -> None:
    async with client_of() as client:
        for path in ("/livez/", "/v1/ground/", "/docs", "/redoc", "//evil.example/"):
            response = await client.get(path)
            assert response.status_code == 404 and "location" not in response.headers, path


@pytest.mark.parametrize("key", [" padded", "padded ", "line\n", "schlüssel", "", "two words", "\u200bkey", "k\x7f"])
@pytest.mark.parametrize("name", ["api_key", "upstream_api_key"])
def test_a_key_that_no_header_can_carry_is_refused_at_start(key: str, name: str) -> None:
    with pytest.raises(ConfigError, match=name.upper()) as refused:
        load_settings(**{name: key})
    assert not key or key not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:pass@a:1",
        "http://user:pa/ss@a:1",
        "http://user:p@ss@a:1",
        "http://a:1, https://user:pa ss@b:2/v1",
        "http://user:pass@a:1,http://user:other-pass@b:2",
        "http://a:1/v1?key=pass",
    ],
)
def test_no_secret_of_an_address_is_shown(url: str) -> None:
    lines = {name: value for name, value, _ in describe(load_settings(upstream_url=url))}
    shown = lines["LABELER_UPSTREAM_URL"]
    assert "pass" not in shown and "ss@" not in shown and "user" not in shown, shown


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("accept", [b"*/*", b"application/x-ndjson"])
async def test_a_client_that_goes_away_takes_its_questions_with_it(accept: bytes, begun: bool, monkeypatch) -> None:
    monkeypatch.setattr(routes, "LINES_S", 0.01)
    engine = Scripted()
    engine.gate = asyncio.Event()
    ended: list[str] = []
    ground = engine.ground

    async def watched(image, parts, attempt):
        try:
            return await ground(image, parts, attempt)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    engine.ground = watched
    app = create_app(load_settings(), engine)
    content = json.dumps(body(png(), png(65), png(66), *[b""] * begun)).encode()
    messages = [{"type": "http.request", "body": content, "more_body": False}]
    sent: list[dict] = []
    left = asyncio.Event()

    async def receive() -> dict:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/ground",
        "raw_path": b"/v1/ground",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"accept", accept)],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("localhost", 80),
        "root_path": "",
    }
    request = asyncio.create_task(app(scope, receive, send))
    while engine.asked < 3:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.1)
    in_lines = begun and b"json" in accept
    assert bool(sent) == in_lines
    left.set()
    await asyncio.wait_for(request, 20)
    assert ended == ["cancelled"] * 3 and sent[0]["status"] == (200 if in_lines else 499)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        engine.gate.set()
        assert (await client.post("/v1/ground", json=body(png()))).status_code == 200


@asynccontextmanager
async def listening(engine: Scripted) -> AsyncIterator[int]:
    """The port of the service on its own HTTP parser."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(load_settings(), engine), http=bounded_http(64), ws="none", log_config=None)
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve([one]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield one.getsockname()[1]
        server.should_exit = True
        await running


def sent(*images: bytes) -> bytes:
    content = json.dumps(body(*images)).encode()
    head = "POST /v1/ground HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(content) + content


@pytest.mark.parametrize("at_once", [True, False])
async def test_who_sends_the_next_request_too_early_and_goes_takes_the_questions_along(at_once: bool) -> None:
    """A request that waits for the one before it must not hide that the client has gone."""
    engine = Scripted()
    engine.gate = asyncio.Event()
    ended: list[int] = []
    ground = engine.ground

    async def watched(image, parts, attempt):
        try:
            return await ground(image, parts, attempt)
        except asyncio.CancelledError:
            ended.append(image.width)
            raise

    engine.ground = watched
    async with asyncio.timeout(30), listening(engine) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent(png(), png(65)) * (2 if at_once else 1))
        while engine.asked < 2:
            await asyncio.sleep(0.01)
        if not at_once:
            writer.write(sent(png()) + b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.close()
        while len(ended) < 2:
            await asyncio.sleep(0.01)
        engine.gate.set()
    assert engine.asked == 2 and sorted(ended) == [64, 65]


async def test_who_sends_the_next_request_too_early_and_stays_has_the_first_answered() -> None:
    engine = Scripted()
    async with asyncio.timeout(30), listening(engine) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent(png()) * 3)
        told = (await reader.read()).lower()
        assert told.startswith(b"http/1.1 200") and b"connection: close" in told and told.count(b"http/1.1 ") == 1
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):  # one after the other, on one connection
            writer.write(sent(png()))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200") and b"connection: close" not in head.lower()
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r")[0]))
        writer.close()


async def test_what_a_model_server_asks_for_is_passed_on() -> None:
    engine = Scripted()
    for asked, told in ((17.2, "18"), (None, "2"), (1e9, "30")):
        engine.faults = {64: EngineDownError("busy", fix="-", retry_after_s=asked)}
        assert (await post([png()], client_of(engine))).headers["retry-after"] == told


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (json.dumps(body(b"x", parts=["wing" * 9 + str(n) for n in range(300)])).encode(), "application/json"),
        (json.dumps(body(b"x", parts=["wing" * 9 + str(n) for n in range(100)])).encode(), "application/json"),
        (json.dumps({"images": ["?"] * 200}).encode(), "application/json"),
        (json.dumps({"images": [1] * 200}).encode(), "application/json"),
        (json.dumps({"x" * 100_000: 1}).encode(), "application/json"),
        (b"x", "a/" + "b" * 10_000),
        (b'--b\r\ncontent-disposition: form-data; name="' + b"x" * 3000 + b'"\r\n\r\nx\r\n--b--', MULTIPART),
        (
            b'--b\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\nx\r\n--b\r\n'
            b'content-disposition: form-data; name="parts"\r\n\r\n' + b"a,b,c,d,e,f,g," * 200 + b"\r\n--b--",
            MULTIPART,
        ),
    ],
)
async def test_what_a_refusal_says_is_short(content: bytes, kind: str) -> None:
    async with client_of() as client:
        response = await client.post("/v1/ground", content=content, headers={"content-type": kind})
    assert response.status_code in (400, 415, 422) and len(response.content) < 1500, response.text


async def test_heads_without_bodies_that_are_replaced_do_not_reach_the_application(monkeypatch) -> None:
    """What a connection costs until its body begins is what a flood of them takes from others."""
    monkeypatch.setattr(limits, "BODY_GRACE_S", 0.3)
    app, asked = create_app(load_settings(), Scripted()), 0

    async def counted(scope, receive, send) -> None:
        nonlocal asked
        asked += scope["type"] == "http"
        await app(scope, receive, send)

    head, content = sent(png()).split(b"\r\n\r\n", 1)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(counted, http=bounded_http(8), ws="none", log_config=None))
        running = asyncio.create_task(server.serve([one]))
        async with asyncio.timeout(30):
            while not server.started:
                await asyncio.sleep(0.01)
            flood = [await asyncio.open_connection(*one.getsockname()) for _ in range(40)]
            for _, writer in flood:
                writer.write(head + b"\r\n\r\n" + content[:1])
            await asyncio.sleep(1)
            assert asked == 8, "of those that were not replaced"
            reader, writer = flood[-1]
            writer.write(content[1:])  # later than the grace
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            for _, writer in flood:
                writer.close()
        server.should_exit = True
        await running
