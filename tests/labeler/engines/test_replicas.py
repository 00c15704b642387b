"""Several model servers behind one engine: shared load, a dead one left out, and taken back."""

import asyncio
import base64
import json
import threading
from collections.abc import Callable

import httpx
import pytest

from labeler.engines import replicas, vllm_server
from labeler.engines.replicas import Replicas
from labeler.engines.vllm_server import VllmServer
from labeler.grounding.engine import EngineDownError, EngineError, EngineRefusedError
from labeler.grounding.ground import ground_image
from labeler.service.app import create_app
from labeler.settings import load_settings
from shared.errors import ConfigError
from shared.schemas import PARTS, LabelStatus

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
PATH = "/v1/chat/completions"


class House:
    """Stand-in servers a, b, c: which are dead, what each was asked, a gate that holds their answers back."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.failing: set[str] = set()  # they list their model, and answer no question
        self.models = dict.fromkeys("abc", MODEL)
        self.questions: list[str] = []
        self.looks: list[str] = []
        self.headers: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.refusal = httpx.Response(500, text="engine dead")

    async def answer(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        if request.url.path == "/v1/models":
            self.looks.append(name)
            if name in self.dead:
                raise httpx.ConnectError("connection refused")
            return httpx.Response(200, json={"data": [{"id": self.models[name]}]})
        self.questions.append(name)
        self.headers.append(request.headers.get("x-request-id", ""))
        if name in self.gates:
            await self.gates[name].wait()
        if name in self.dead | self.failing:
            return self.refusal
        return httpx.Response(200, json={"from": name})

    def replicas(self, urls: str = "http://a:1,http://b:1/v1/, http://c:1", **overrides) -> Replicas:
        settings = load_settings(engine="vllm_server", model=MODEL, upstream_url=urls, **overrides)
        return Replicas.from_settings(settings, httpx.MockTransport(self.answer))


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "FIRST_OUT_S", 0.002)
    monkeypatch.setattr(replicas, "LONGEST_OUT_S", 0.002)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def up(servers: Replicas) -> str:
    return "".join(state.name[0] for state in servers.states() if state.up)


async def test_each_question_goes_to_the_least_busy_server(house: House) -> None:
    house.gates = {name: asyncio.Event() for name in "abc"}
    servers = house.replicas()
    first = [asyncio.create_task(servers.ask(PATH, {})) for _ in range(6)]
    await until(lambda: len(house.questions) == 6)
    assert sorted(house.questions) == list("aabbcc")
    house.gates["b"].set()
    await until(lambda: [state.in_flight for state in servers.states()] == [2, 0, 2])
    house.gates["b"].clear()
    more = [asyncio.create_task(servers.ask(PATH, {})) for _ in range(2)]
    await until(lambda: len(house.questions) == 8)
    assert house.questions[6:] == ["b", "b"]
    for gate in house.gates.values():
        gate.set()
    replies = await asyncio.gather(*first, *more)
    assert sorted(reply["from"] for reply in replies) == list("aabbbbcc")
    await servers.close()


async def test_a_dead_server_is_left_out_and_comes_back(house: House, soon: None) -> None:
    servers = house.replicas()
    house.dead = {"b"}
    failed = 0
    for _ in range(12):
        try:
            await servers.ask(PATH, {})
        except EngineDownError:
            failed += 1
    assert failed == 1 and house.questions.count("b") == 1 and up(servers) == "ac"
    house.dead = set()
    await until(lambda: up(servers) == "abc")
    for _ in range(9):
        await servers.ask(PATH, {})
    assert house.questions.count("b") > 1
    await servers.close()


async def test_a_server_that_only_lists_its_model_stays_out_longer_each_time(house: House, monkeypatch) -> None:
    """Who fails at once is the least busy of all: without growing pauses it would get nearly every question."""
    pauses: list[int] = []
    monkeypatch.setattr(replicas, "pause_s", lambda failures, *_, **__: pauses.append(failures) or 0.0)
    servers = house.replicas("http://a:1")

    async def ask() -> None:
        with pytest.raises(EngineDownError):
            await servers.ask(PATH, {})
        await until(lambda: up(servers) == "a")

    house.failing = {"a"}
    for _ in range(3):
        await ask()
    house.failing = set()
    await servers.ask(PATH, {})
    house.failing = {"a"}
    await ask()
    assert pauses == [1, 2, 3, 1], "an answer forgives the failures before it"
    await servers.close()


async def test_when_all_are_out_one_is_asked_anyway(house: House) -> None:
    servers = house.replicas("http://a:1,http://b:1")
    house.dead = {"a", "b"}
    for _ in range(2):
        with pytest.raises(EngineDownError):
            await servers.ask(PATH, {})
    assert up(servers) == ""
    house.dead = set()
    assert (await servers.ask(PATH, {}))["from"] in "ab"
    await servers.close()


async def test_a_busy_server_is_left_alone_as_long_as_it_asks(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []
    monkeypatch.setattr(replicas, "pause_s", lambda *_, asked_s, **__: asked.append(asked_s) or 60.0)
    servers = house.replicas()
    house.dead, house.refusal = {"a"}, httpx.Response(503, headers={"retry-after": "7"})
    with pytest.raises(EngineDownError):
        await servers.ask(PATH, {})
    await until(lambda: bool(asked))
    assert asked == [7.0] and up(servers) == "bc"
    await servers.close()


async def test_a_refused_request_is_no_fault_of_the_server(house: House) -> None:
    servers = house.replicas("http://a:1")
    house.dead, house.refusal = {"a"}, httpx.Response(400, text="bad: data:image/jpeg;base64,/9j/4AAQSkZJRg== end")
    with pytest.raises(EngineError) as refused:
        await servers.ask(PATH, {})
    assert up(servers) == "a"
    assert "base64,... end" in refused.value.what and "9j" not in refused.value.what, "no image content in errors"
    await servers.close()


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 413, 415, 422, 501])
async def test_a_server_that_refuses_at_once_does_not_draw_the_questions(house: House, status: int) -> None:
    servers = house.replicas()
    house.failing, house.refusal = {"b"}, httpx.Response(status, text="no")
    for _ in range(30):
        assert (await servers.ask(PATH, {}))["from"] in "ac"
    assert house.questions.count("b") == 1 and up(servers) == "ac"
    await servers.close()


async def test_what_all_servers_refuse_is_the_questions_fault(house: House) -> None:
    servers = house.replicas()
    house.failing, house.refusal = set("abc"), httpx.Response(400, text="prompt too long")
    with pytest.raises(EngineRefusedError, match="prompt too long"):
        await servers.ask(PATH, {})
    assert sorted(house.questions) == ["a", "b", "c"] and up(servers) == "abc"
    await servers.close()


async def test_where_all_refuse_us_the_question_may_be_asked_again(house: House) -> None:
    servers = house.replicas("http://a:1,http://b:1", upstream_api_key="hunter2")
    house.failing, house.refusal = set("ab"), httpx.Response(401, text="wrong key hunter2")
    with pytest.raises(EngineDownError, match="401") as refused:
        await servers.ask(PATH, {})
    assert "hunter2" not in str(refused.value)
    house.failing = set()
    assert (await servers.ask(PATH, {}))["from"] in "ab"
    await servers.close()


async def test_a_schema_that_is_refused_is_left_out_from_then_on(stand_in, paint, caplog) -> None:
    server = stand_in()
    refused = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal refused
        if b"response_format" in request.content:
            refused += 1
            return httpx.Response(400, json={"message": "response_format is not supported"})
        return await server._answer(request)

    settings = load_settings(engine="vllm_server", model=MODEL)
    engine = VllmServer.from_settings(settings, httpx.MockTransport(answer))
    for height in range(128, 133):
        answer_ = await ground_image(engine, paint(height=height), PARTS, max_pixels=10**6, max_attempts=4)
        assert set(answer_.statuses.values()) == {LabelStatus.OK}
        assert {part.attempts for part in answer_.parts} == {1}
    await engine.close()
    assert refused == 1 and "asked without" in caplog.text


async def test_a_question_refused_with_and_without_schema_is_named_by_the_first_refusal(stand_in, paint) -> None:
    server = stand_in()
    server.always = "400"
    engine = VllmServer.from_settings(load_settings(engine="vllm_server", model=MODEL), server.transport)
    answer = await ground_image(engine, paint(), PARTS, max_pixels=10**6, max_attempts=4)
    assert "prompt too long" in answer.error and len(server.payloads) == 2
    server.always, server.payloads = None, []
    await ground_image(engine, paint(), PARTS, max_pixels=10**6, max_attempts=4)
    await engine.close()
    assert "response_format" in server.payloads[0], "that refusal was not about the schema"


@pytest.mark.parametrize("count", [10**400, -(10**400), 2**31, True, 1.5, "7", None, float("inf")])
async def test_a_count_of_tokens_that_is_none_is_not_counted(stand_in, paint, count: object) -> None:
    server = stand_in()

    async def answer(request: httpx.Request) -> httpx.Response:
        response = await server._answer(request)
        if request.url.path == "/v1/models":
            return response
        reply = response.json() | {"usage": {"prompt_tokens": count, "completion_tokens": count}}
        return httpx.Response(200, content=json.dumps(reply))

    settings = load_settings(engine="vllm_server", model=MODEL)
    app = create_app(settings, VllmServer.from_settings(settings, httpx.MockTransport(answer)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        response = await client.post("/v1/ground", files=[("images", ("a.png", paint()))])
    (image,) = response.json()["images"]
    assert image["completion_tokens"] == 0 and {part["status"] for part in image["parts"]} == {"ok"}


async def test_a_long_answer_does_not_hold_up_the_event_loop(stand_in, paint, monkeypatch: pytest.MonkeyPatch) -> None:
    server = stand_in()
    server._boxes = lambda payload: "head [1, 2, 3, 4] " * 1200
    threads: list[bool] = []
    read = vllm_server._outcomes

    def noted(*given):
        threads.append(threading.current_thread() is threading.main_thread())
        return read(*given)

    monkeypatch.setattr(vllm_server, "_outcomes", noted)
    engine = VllmServer.from_settings(load_settings(engine="vllm_server", model=MODEL), server.transport)
    await ground_image(engine, paint(), PARTS, max_pixels=10**6, max_attempts=1)
    await engine.close()
    assert threads == [False]


async def test_ready_as_long_as_one_server_lists_the_model(house: House) -> None:
    servers = house.replicas()
    house.models["a"], house.dead = "another", {"b"}
    await servers.check()
    assert up(servers) == "c"
    await servers.ask(PATH, {})
    assert house.questions == ["c"]
    house.dead = {"b", "c"}
    with pytest.raises(EngineError, match="does not list"):
        await servers.check()
    await servers.close()


async def test_an_image_survives_the_death_of_its_server(stand_in, paint, no_pauses, soon) -> None:
    good, broken = stand_in(), stand_in()
    broken.always = "cut"

    async def by_host(request: httpx.Request) -> httpx.Response:
        return await (broken if request.url.host == "broken" else good)._answer(request)

    settings = load_settings(
        engine="vllm_server", model=MODEL, upstream_url="http://broken:1,http://good:1", transport_attempts=2
    )
    engine = VllmServer.from_settings(settings, httpx.MockTransport(by_host))
    answers = [
        await ground_image(engine, paint(height=128 + n), PARTS, max_pixels=10**6, max_attempts=1) for n in range(5)
    ]
    await engine.close()
    assert {row.status for answer in answers for row in answer.parts} == {LabelStatus.OK}
    assert len(broken.payloads) >= 1 and len(good.payloads) == 5


async def test_the_request_id_reaches_the_server_once_per_question(stand_in, paint) -> None:
    seen: list[str] = []
    server = stand_in()

    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("x-request-id", ""))
        return await server._answer(request)

    settings = load_settings(engine="vllm_server", model=MODEL, prompt_mode="per_part")
    app = create_app(settings, VllmServer.from_settings(settings, httpx.MockTransport(answer)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        files = [("images", ("a.png", paint()))]
        await client.post("/v1/ground", files=files, headers={"x-request-id": "run-7.a"})
    assert len(set(seen)) == len(seen) >= 3 and all(name.startswith("run-7.a-") for name in seen)


@pytest.mark.parametrize(
    ("url", "settings", "expected"),
    [
        ("http://a:1", {}, None),
        ("http://a:1/gate/v1", {"upstream_api_key": "key"}, "Bearer key"),
        ("http://user:se%40cret@a:1", {}, f"Basic {base64.b64encode(b'user:se@cret').decode()}"),
    ],
)
async def test_who_we_are_is_told_to_the_server(url: str, settings, expected: str | None) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    settings = load_settings(engine="vllm_server", model=MODEL, upstream_url=url, answer_timeout_s=7, **settings)
    servers = Replicas.from_settings(settings, httpx.MockTransport(answer))
    await servers.ask(PATH, {"a": "ü"})
    await servers.close()
    (request,) = seen
    assert request.headers.get("authorization") == expected
    assert request.url.path == ("/gate" if "gate" in url else "") + PATH and request.url.host == "a"
    assert request.headers["content-type"] == "application/json" and json.loads(request.content) == {"a": "ü"}
    assert request.extensions["timeout"] == {"connect": 5.0, "read": 7.0, "write": 7.0, "pool": 7.0}


@pytest.mark.parametrize("urls", ["", " , ", "localhost:8000", "http://a:1,ftp://b", "http://[::1"])
def test_unfit_urls_are_refused_at_start(urls: str) -> None:
    with pytest.raises(ConfigError, match="LABELER_UPSTREAM_URL"):
        Replicas.from_settings(load_settings(engine="vllm_server", model=MODEL, upstream_url=urls))


@pytest.mark.parametrize("reply", ["[]", "null", '{"choices": []}', '{"choices": [{"message": {"content": 7}}]}', "{}"])
async def test_a_server_that_answers_with_nonsense_is_left_out_and_another_asked(house: House, reply: str) -> None:
    house.failing = {"a"}
    house.refusal = httpx.Response(200, text=reply)
    house.models = dict.fromkeys("ab", MODEL)
    answer = {"choices": [{"message": {"content": "[]"}, "finish_reason": "stop"}]}

    async def ask(request: httpx.Request) -> httpx.Response:
        response = await house.answer(request)
        good = request.method == "POST" and request.url.host not in house.failing
        return httpx.Response(200, json=answer) if good else response

    settings = load_settings(engine="vllm_server", model=MODEL, upstream_url="http://a:1,http://b:1")
    servers = Replicas.from_settings(settings, httpx.MockTransport(ask))
    with pytest.raises(EngineDownError, match=r"is not a chat completion|not a JSON object") as named:
        for _ in range(2):
            await servers.ask(PATH, {}, vllm_server.chat_fault)
    assert str(named.value.path) == "a:1" and up(servers) == "b"
    for _ in range(5):
        assert await servers.ask(PATH, {}, vllm_server.chat_fault) == answer
    assert house.questions.count("a") == 1
    await servers.close()
