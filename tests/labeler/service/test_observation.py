"""What an operator sees: metrics, log lines, api_models."""

import base64
import json
import logging

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from labeler.engines.body_prior import BodyPrior
from labeler.engines.vllm_server import VllmServer
from labeler.service import api_models
from labeler.service.api_models import GroundResponse, Problem
from labeler.service.app import create_app
from labeler.service.json_log import JsonFormatter
from labeler.settings import load_settings
from shared.schemas import PARTS


def client_of(engine=None, **overrides) -> httpx.AsyncClient:
    app = create_app(load_settings(**overrides), engine or BodyPrior())
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://localhost"
    )


def body(*images: bytes) -> dict:
    return {"images": [base64.b64encode(image).decode() for image in images]}


async def samples(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """Value of each sample by (name, label values ...), zeros left out."""
    response = await client.get("/metrics")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if sample.value
    }


async def test_requests_images_and_latencies_are_counted(paint) -> None:
    async with client_of() as client:
        await client.post("/v1/ground", json=body(paint(), paint(height=130), b"broken"))
        await client.post("/v1/ground", content=b"{", headers={"content-type": "application/json"})
        await client.get("/nowhere/1")
        await client.get("/nowhere/2")
        found = await samples(client)
    assert found["labeler_requests_total", "POST", "/v1/ground", "200"] == 1
    assert found["labeler_requests_total", "POST", "/v1/ground", "400"] == 1
    assert found["labeler_requests_total", "any", "unmatched", "404"] == 2, "labels must not grow with what is asked"
    assert found["labeler_images_total", "ok"] == 2 and found["labeler_images_total", "unreadable"] == 1
    assert found["labeler_request_seconds_count", "/v1/ground"] == 2
    assert found["labeler_image_seconds_count",] == 3
    assert found["labeler_requests_in_flight",] == 1, "the one that asks"
    assert ("labeler_images_in_work",) not in found


async def test_tokens_and_servers_are_shown(stand_in, paint) -> None:
    server = stand_in()
    settings = load_settings(engine="vllm_server", model=server.model, upstream_url="http://user:secret@a:1,http://b:2")
    dead: set[str] = set()

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host in dead:
            raise httpx.ConnectError("refused")
        return await server._answer(request)

    engine = VllmServer.from_settings(settings, httpx.MockTransport(answer))
    async with client_of(engine) as client:
        response = await client.post("/v1/ground", json=body(paint(), paint(height=130)))
        tokens = [(image["prompt_tokens"], image["completion_tokens"]) for image in response.json()["images"]]
        dead.add("b")
        assert (await client.get("/readyz")).status_code == 200
        found = await samples(client)
        text = (await client.get("/metrics")).text
    await engine.close()
    assert tokens[0][0] > 0 and tokens[0][1] > 0, "of these and the calibration image, which is asked by /readyz"
    assert found["labeler_tokens_total", "prompt"] > sum(prompt for prompt, _ in tokens)
    assert found["labeler_tokens_total", "completion"] > sum(completion for _, completion in tokens)
    assert found["labeler_upstream_up", "a:1"] == 1 and ("labeler_upstream_up", "b:2") not in found
    assert 'labeler_upstream_up{upstream="b:2"} 0.0' in text and "secret" not in text


async def test_the_metrics_of_two_applications_are_apart(paint) -> None:
    async with client_of() as first, client_of() as second:
        await first.post("/v1/ground", json=body(paint()))
        assert ("labeler_images_total", "ok") in await samples(first)
        assert ("labeler_images_total", "ok") not in await samples(second)


async def test_the_metrics_want_the_key_too() -> None:
    async with client_of(api_key="secret") as client:
        assert (await client.get("/metrics")).status_code == 401


async def test_an_unexpected_failure_is_counted_as_500(paint, monkeypatch: pytest.MonkeyPatch) -> None:
    async with client_of() as client:
        monkeypatch.setattr("labeler.service.routes.read_batch", lambda *_: 1 / 0)
        response = await client.post("/v1/ground", json=body(paint()), headers={"x-request-id": "r-9"})
        assert response.status_code == 500 and response.json()["request_id"] == "r-9"
        assert (await samples(client))["labeler_requests_total", "POST", "/v1/ground", "500"] == 1


async def test_one_line_per_request_without_the_image(paint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    content = paint()
    with caplog.at_level(logging.INFO):
        async with client_of() as client:
            await client.post("/v1/ground", json=body(content, content), headers={"x-request-id": "run-7"})
            await client.get("/livez")
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    (line,) = [line for line in lines if line["message"] == "request"]
    assert (line["request_id"], line["route"], line["status"], line["images"]) == ("run-7", "/v1/ground", 200, 2)
    assert line["method"] == "POST" and line["ms"] >= 0 and line["level"] == "info"
    assert base64.b64encode(content).decode()[20:60] not in caplog.text


def test_a_traceback_stays_one_json_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as err:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "odd %s", ("x",), (type(err), err, err.__traceback__))
    text = JsonFormatter().format(record)
    assert "\n" not in text and json.loads(text)["message"] == "odd x"
    assert "two\nlines" in json.loads(text)["traceback"]


async def test_the_examples_are_true() -> None:
    GroundResponse.model_validate_json(json.dumps(api_models.RESPONSE))
    Problem.model_validate(api_models.PROBLEM)
    async with client_of() as client:
        response = await client.post("/v1/ground", json=api_models.REQUEST)
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert response.status_code == 200
    (answer,) = response.json()["images"]
    assert answer["image_id"] == api_models.RESPONSE["images"][0]["image_id"]
    assert [row["part"] for row in answer["parts"]] == api_models.REQUEST["parts"]
    post = paths["/v1/ground"]["post"]
    assert post["requestBody"]["content"]["application/json"]["example"] == api_models.REQUEST
    assert post["responses"]["200"]["content"]["application/json"]["example"] == api_models.RESPONSE
    assert post["responses"]["429"]["content"]["application/json"]["example"] == api_models.PROBLEM
    assert set(api_models.REQUEST["parts"]) <= set(PARTS)
