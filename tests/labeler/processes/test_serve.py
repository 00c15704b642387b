"""The service as a process: what it says at start, and how it ends."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from labeler import Grounder
from shared.schemas import PARTS


def test_sigterm_during_a_request_still_brings_the_answer(start_service, start_stand_in, paint) -> None:
    upstream = start_stand_in()
    httpx.post(f"{upstream.url}/control", json={"faults": ["hold"]})
    service = start_service(engine="vllm_server", upstream_url=upstream.url)
    with ThreadPoolExecutor(1) as pool:
        files = [("images", ("a.png", paint()))]
        pending = pool.submit(httpx.post, f"{service.url}/v1/ground", files=files, timeout=60)
        while httpx.get(f"{upstream.url}/count").text == "0":
            assert not pending.done(), pending.result().text
            time.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        while _listens(service.url):
            time.sleep(0.01)
        assert service.process.poll() is None and not pending.done()
        httpx.post(f"{upstream.url}/release")
        response = pending.result()
    assert response.status_code == 200
    assert {row["status"] for row in response.json()["images"][0]["parts"]} == {"ok"}
    assert service.process.wait(60) in (0, -signal.SIGTERM)


def test_the_start_names_every_setting_with_its_origin_and_no_secret(start_service) -> None:
    service = start_service(api_key="hunter2", upstream_url="http://user:hunter3@a:1")
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    (shown,) = [line["settings"] for line in lines if "settings" in line]
    assert shown["LABELER_PORT"] == {"value": "0", "origin": "set"}
    assert shown["LABELER_ENGINE"] == {"value": "body_prior", "origin": "set"}
    assert shown["LABELER_HOST"] == {"value": "127.0.0.1", "origin": "default"}
    assert shown["LABELER_UPSTREAM_URL"]["value"] == "http://**********@a:1"
    assert "hunter" not in service.log.read_text() and shown["LABELER_API_KEY"]["origin"] == "set"


def test_a_vllm_server_and_a_running_service_answer_too(start_service, start_stand_in, paint) -> None:
    upstream = start_stand_in()
    service = start_service(engine="vllm_server", upstream_url=upstream.url, api_key="secret")
    with Grounder(engine="vllm_server", upstream_url=upstream.url) as grounder:
        direct = grounder.ground(paint())
    with Grounder(url=service.url, api_key="secret") as grounder:
        assert grounder.ground(paint()) == direct
    assert direct.space.startswith("sent_pixels@") and set(direct.boxes) == set(PARTS)


def _listens(url: str) -> bool:
    try:
        httpx.get(f"{url}/livez")
    except httpx.TransportError:
        return False
    return True
