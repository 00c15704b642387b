"""A scripted model server, painted crops, small data sets and both clients: what the labeler's tests are made of."""

import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from labeler.annotation import client as client_module
from labeler.annotation.client import GroundingClient, HttpClient, InProcessClient
from labeler.engines import vllm_server
from labeler.grounding.engine import Engine
from labeler.service import grounding_service
from labeler.service.app import create_app
from labeler.settings import Settings
from shared.geometry import Box
from shared.images import image_id_of
from shared.schemas import ManifestRow
from tests.rows import manifest_row

COLOURS = {"head": (255, 0, 0), "upper_body": (0, 255, 0), "legs": (0, 0, 255)}
DRAWN = {"head": (214, 170, 140), "upper_body": (160, 40, 44), "legs": (38, 48, 90)}
PAINTED = {"head": Box(20, 6, 44, 30), "upper_body": Box(10, 34, 54, 72), "legs": Box(16, 76, 48, 122)}


def painted_png(width: int = 64, height: int = 128, boxes: dict[str, Box] = PAINTED) -> bytes:
    pixels = np.full((height, width, 3), 128, np.uint8)
    for part, box in boxes.items():
        pixels[int(box.y_min) : int(box.y_max), int(box.x_min) : int(box.x_max)] = COLOURS[part]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class StandIn:
    """An OpenAI-compatible server that finds painted boxes; `script` holds behaviours for the next requests.

    thousandths: whether it answers like Qwen2-VL and Qwen3-VL; otherwise in pixels of the image it got.
    text_tokens: what it counts for everything around the image; None: it does not report tokens.
    max_image_tokens: larger images are made smaller first, as a server with a low max_pixels does.
    """

    def __init__(self, model: str = "Qwen/Qwen2.5-VL-7B-Instruct", *, thousandths: bool = False) -> None:
        self.model, self.thousandths = model, thousandths
        self.text_tokens: int | None = 57
        self.max_image_tokens = 10**6
        self.script: list[str] = []
        self.always: str | None = None
        self.payloads: list[dict] = []
        self.sizes: list[tuple[int, int]] = []

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": self.model}]})
        assert request.url.path == "/v1/chat/completions"
        payload = json.loads(request.content)
        if payload["max_tokens"] == 1:  # only the count of tokens is of interest
            return self._said("1", payload, finish="length")
        self.payloads.append(payload)
        behaviour = self.always or (self.script.pop(0) if self.script else "good")
        match behaviour:
            case "500":
                return httpx.Response(500, text="engine dead")
            case "hang":
                raise httpx.ReadTimeout("hang", request=request)
            case "cut":
                raise httpx.RemoteProtocolError("peer closed connection", request=request)
            case "400":
                return httpx.Response(400, json={"message": "prompt too long"})
            case "wrong schema":
                return httpx.Response(200, json={"choices": "none"})
            case "no json":
                return httpx.Response(200, text="<html>")
            case "garbage":
                return self._said("%$ 12 boxes [[", payload)
            case "refusal":
                return self._said("I'm sorry, I can't help with that.", payload)
            case "length":
                return self._said(self._boxes(payload), payload, finish="length")
            case "whole image":
                box = [0, 0, 1000, 1000]
                answer = json.dumps({"head": box, "upper_body": box, "legs": box}, separators=(",", ":"))
                return self._said(answer, payload)
            case _:
                return self._said(self._boxes(payload), payload)

    def _said(self, text: str, payload: dict, finish: str = "stop") -> httpx.Response:
        tokens = [{"token": character, "logprob": -0.5} for character in text]
        choice = {"message": {"content": text}, "finish_reason": finish, "logprobs": {"content": tokens}}
        reply: dict = {"choices": [choice]}
        if self.text_tokens is not None:
            height, width = self._pixels(payload).shape[:2]
            image_tokens = min(self.count(width, height), self.max_image_tokens)
            reply["usage"] = {"prompt_tokens": self.text_tokens + image_tokens, "completion_tokens": 10}
        return httpx.Response(200, json=reply)

    def count(self, width: int, height: int) -> int:
        """Image tokens that the model's own processor makes of a size (pixels)."""
        factor = 32 if "Qwen3" in self.model else 28
        return round(width / factor) * round(height / factor)

    def _pixels(self, payload: dict) -> np.ndarray:
        content = base64.b64decode(payload["messages"][0]["content"][0]["image_url"]["url"].split(",", 1)[1])
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)

    def _boxes(self, payload: dict) -> str:
        text_part = payload["messages"][0]["content"][1]
        pixels = self._pixels(payload)
        height, width = pixels.shape[:2]
        self.sizes.append((width, height))
        found: dict[str, list[int] | None] = {}
        drawn = abs(pixels[0, 0] - (168, 176, 172)).max() < 10  # the calibration image
        bare = "[[x0,y0,x1,y1]]" in text_part["text"]  # as CogVLM-grounding is asked
        for part, colour in COLOURS.items():
            if (f"the {part.replace('_', ' ')} of" if bare else f'"{part}"') not in text_part["text"]:
                continue
            seen = np.abs(pixels - (DRAWN[part] if drawn else colour)).max(axis=2) < (40 if drawn else 100)
            rows, columns = np.nonzero(seen)
            corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None
            if corners and self.thousandths:
                corners = [corner * 1000 / side for corner, side in zip(corners, (width, height) * 2, strict=True)]
            found[part] = [round(float(corner)) for corner in corners] if corners else None
        if bare:
            (corners,) = found.values()
            return (
                f"[[{','.join(f'{min(corner, 999):03}' for corner in corners)}]]" if corners else "It is not visible."
            )
        return json.dumps(found, separators=(",", ":"))


@pytest.fixture
def stand_in() -> Callable[..., StandIn]:
    return StandIn


@pytest.fixture
def painted() -> dict[str, Box]:
    return PAINTED


@pytest.fixture
def paint() -> Callable[..., bytes]:
    return painted_png


@asynccontextmanager
async def in_process(settings: Settings, engine: Engine | None = None, **limits: int) -> AsyncIterator[GroundingClient]:
    async with InProcessClient(settings, engine, **limits) as client:
        yield client


@asynccontextmanager
async def over_http(settings: Settings, engine: Engine | None = None, **limits: int) -> AsyncIterator[GroundingClient]:
    app = create_app(settings, engine)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        HttpClient("http://localhost", settings.api_key, transport=transport, **limits) as client,
    ):
        yield client


CLIENTS = {"in_process": in_process, "http": over_http}


@pytest.fixture(params=CLIENTS)
def open_client(request: pytest.FixtureRequest) -> Callable[..., AsyncIterator[GroundingClient]]:
    """open_client(settings, engine, connections=..., attempts=...): every test with it runs once per implementation."""
    return CLIENTS[request.param]


@pytest.fixture
def open_clients() -> dict[str, Callable[..., AsyncIterator[GroundingClient]]]:
    """Both implementations by name, for a test that compares them."""
    return CLIENTS


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (client_module, vllm_server):
        monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.0)
        monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.0)
    monkeypatch.setattr(client_module, "READY_PAUSE_S", 0.0)
    monkeypatch.setattr(grounding_service, "READY_FOR_S", 0.0)
    monkeypatch.setattr(client_module, "LONGEST_BUSY_S", 0.0)


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., tuple[Path, list[ManifestRow]]]:
    """(folder, manifest rows) of a data set `toy` with `count` different crops, alternating between two splits."""

    def make(count: int) -> tuple[Path, list[ManifestRow]]:
        root = tmp_path / "toy"
        root.mkdir(exist_ok=True)
        rows = []
        for index in range(count):
            moved = Box(*(corner + index % 4 for corner in PAINTED["head"]))
            height = 128 + index // 4
            content = painted_png(height=height, boxes={**PAINTED, "head": moved})
            (root / f"{index:04d}.png").write_bytes(content)
            rows.append(
                manifest_row(
                    split="query" if index % 2 else "gallery",
                    path=f"{index:04d}.png",
                    image_id=image_id_of(content),
                    height=height,
                    identity=index + 1,
                )
            )
        return root, rows

    return make
