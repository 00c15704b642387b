"""The service of a trained model: the model's answers, and every request that means harm refused by name."""

import asyncio
import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import SecretStr

from labeler.settings import load_settings
from pipelines.__main__ import run
from pipelines.person_service import PersonService, create_app
from reid import PersonEncoder
from reid.evaluation.calibration import Calibration
from reid.inference.embeddings import EmbeddingStore
from shared.workspace import Workspace
from tests.labeler.processes.test_hostile_requests import JSON, as_form, as_json, bomb, hand_made, noise

KEY = "secret"
AUTH = {"authorization": f"Bearer {KEY}"}
ROUTES = ("/v1/embed", "/v1/compare", "/v1/search")
LIMITS = {"max_body_bytes": 400_000, "max_pixels": 1_000_000, "max_images": 4, "body_timeout_s": 1}


@pytest.fixture
def encoder(pocket_run: Path) -> PersonEncoder:
    return PersonEncoder.load(pocket_run, device="cpu")


@pytest.fixture
def client(workspace: Workspace, pocket_run: Path, encoder: PersonEncoder, tmp_path: Path) -> Iterator[TestClient]:
    assert run(["embed", "--run", str(pocket_run), "--images", "caviar", "--out", str(tmp_path / "gallery")]) == 0
    calibration = Calibration(
        encoder.model_hash,
        "isotonic",
        (0.5, 1.0),
        (0.1, 0.9),
        {"1e-2": 0.6, "1e-3": 0.9, "1e-4": None},
        0,
        0,
        9,
        9,
        9,
        9,
        ("x",),
    )
    settings = load_settings(api_key=SecretStr(KEY), **LIMITS)
    service = PersonService(settings, encoder, EmbeddingStore(tmp_path / "gallery"), calibration)
    with TestClient(
        create_app(service), base_url="http://127.0.0.1", headers=AUTH, raise_server_exceptions=False
    ) as it:
        yield it


def crop_files(workspace: Workspace) -> list[Path]:
    return sorted((workspace.data_root / "CAVIAR4REID" / "query").iterdir())


def test_answers_are_the_models(client: TestClient, workspace: Workspace, encoder: PersonEncoder) -> None:
    paths = crop_files(workspace)[:3]
    contents = [path.read_bytes() for path in paths]
    expected = encoder.embed(paths)
    found = client.post("/v1/embed", content=as_json(contents[0], b"broken", *contents[1:]), headers=JSON).json()
    assert found["model_hash"] == encoder.model_hash
    assert [one["error"] is None for one in found["images"]] == [True, False, True, True]
    features = np.array([one["feature"] for one in found["images"] if one["feature"]])
    np.testing.assert_allclose(features, expected.features, atol=1e-5)
    seen = [list(one["visibility"].values()) for one in found["images"] if one["feature"]]
    np.testing.assert_allclose(seen, expected.visibility, atol=1e-6)
    body, headers = as_form(*contents[:2])
    compared = client.post("/v1/compare?false_accepts=1e-2", content=body, headers=headers).json()
    assert compared["similarity"] == pytest.approx(encoder.compare(*paths[:2]), abs=0.3)
    assert compared["same_person"] == (compared["similarity"] >= 0.6) and 0.1 <= compared["probability"] <= 0.9
    found = client.post("/v1/search?top=3", content=as_json(*contents[:2]), headers=JSON).json()
    assert [hits[0]["path"] for hits in found["results"]] == [f"query/{path.name}" for path in paths[:2]]
    assert found["unknown"] == [False, False] and len(found["results"][0]) == 3
    found = client.post("/v1/search?camera=2", content=as_json(contents[0]), headers=JSON).json()
    assert {hit["camera"] for hit in found["results"][0]} == {"2"}
    assert "dgreid_images_total" in client.get("/metrics").text
    assert client.get("/readyz").json()["model_hash"] == encoder.model_hash


def test_what_cannot_be_answered_is_said(client: TestClient, workspace: Workspace) -> None:
    one = crop_files(workspace)[0].read_bytes()
    for route, content, status, words in [
        ("/v1/compare", as_json(one), 422, "1 images"),
        ("/v1/compare", as_json(one, b"broken"), 422, "image 2"),
        ("/v1/compare?false_accepts=1e-4", as_json(one, one), 422, "not known"),
        ("/v1/compare?false_accepts=1", as_json(one, one), 422, "false_accepts"),
        ("/v1/search?top=0", as_json(one), 422, "top"),
        ("/v1/search?top=9999999999999999999999", as_json(one), 422, "top"),
        ("/v1/search", as_json(one, parts=["head", "legs"]), 422, "2 parts"),
        ("/v1/search", as_json(one, parts=["hat"]), 422, "unknown parts"),
        ("/v1/embed", as_json(one, path="/etc/passwd"), 422, "path"),
        ("/v1/embed", as_json(*[one] * 5), 422, "5 images"),
        ("/v1/nothing", b"", 404, "Not Found"),
    ]:
        response = client.post(route, content=content, headers=JSON)
        assert response.status_code == status and words in response.json()["error"], (route, response.text)
        assert set(response.json()) == {"error", "fix", "request_id"}
    assert client.post("/v1/embed", content=as_json(one), headers=JSON | {"authorization": "x"}).status_code == 401
    assert client.post("/v1/embed", content=as_json(one), headers=JSON | {"host": "evil.example"}).status_code == 421
    assert (
        client.post("/v1/embed", content=as_json(one), headers=JSON | {"origin": "http://evil.example"}).status_code
        == 403
    )
    unreadable = client.post("/v1/embed", content=as_json(bomb(), noise(9, 9, "PNG", 0)), headers=JSON).json()["images"]
    assert "bomb" in unreadable[0]["error"] and unreadable[1]["feature"]


def test_hostile_requests_break_nothing(client: TestClient) -> None:
    seen = set()
    for number, (content, headers) in zip(range(240), hand_made(seed=11), strict=False):
        response = client.post(ROUTES[number % 3], content=content, headers=headers)
        assert response.status_code < 500, (response.text, headers, content[:200])
        seen.add(response.status_code)
    assert {200, 400, 413, 415, 422} <= seen
    assert client.post("/v1/embed", content=as_json(noise(64, 128, "PNG", 0)), headers=JSON).status_code == 200


def test_a_service_without_gallery_says_so(workspace: Workspace, encoder: PersonEncoder) -> None:
    with TestClient(create_app(PersonService(load_settings(), encoder)), base_url="http://127.0.0.1") as client:
        image = io.BytesIO()
        Image.new("RGB", (8, 16)).save(image, "PNG")
        body = {"images": [base64.b64encode(image.getvalue()).decode()]}
        assert "no gallery" in client.post("/v1/search", json=body).json()["error"]
        compared = client.post("/v1/compare", json={"images": body["images"] * 2}).json()
        assert compared["similarity"] == pytest.approx(1) and compared["probability"] is None


@pytest.mark.parametrize("route", ROUTES)
async def test_a_client_that_goes_away_takes_its_work_with_it(
    workspace: Workspace, pocket_run: Path, encoder: PersonEncoder, tmp_path: Path, route: str
) -> None:
    """The model is busy with another request; what waits for it ends with its client."""
    assert run(["embed", "--run", str(pocket_run), "--images", "caviar", "--out", str(tmp_path / "gallery")]) == 0
    service = PersonService(load_settings(), encoder, EmbeddingStore(tmp_path / "gallery"))
    app = create_app(service)
    busy, embedded = threading.Event(), []
    encode = encoder.encode
    encoder.encode = lambda pixels: embedded.append(len(pixels)) or encode(pixels)  # type: ignore[method-assign]
    other = service._work.submit(busy.wait, 60)
    content = as_json(*[noise(64, 128, "PNG", 0)] * 2)
    messages = [{"type": "http.request", "body": content, "more_body": False}]
    left, sent = asyncio.Event(), []

    async def receive() -> dict[str, object]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": route,
        "raw_path": route.encode(),
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("localhost", 80),
        "root_path": "",
    }
    request = asyncio.create_task(app(scope, receive, send))
    while not service._work._work_queue.qsize():
        await asyncio.sleep(0.001)
    left.set()
    await asyncio.wait_for(request, 20)
    assert sent[0]["status"] == 499 and service._requests == 0
    busy.set()
    other.result(20)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert (await client.post(route, content=content, headers=JSON)).status_code == 200
    assert embedded == [2], "the model was never asked by who had left"
    service.close()


def test_serve_listens_on_loopback_and_ends(workspace: Workspace, pocket_run: Path) -> None:
    import os
    import re
    import signal
    import subprocess
    import sys
    import time

    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pipelines", "serve", "--run", str(pocket_run), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stderr is not None
        while not (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", process.stderr.readline())):
            assert process.poll() is None
            time.sleep(0.01)
        assert httpx.get(f"{found[1]}/livez").json() == {"status": "alive"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
