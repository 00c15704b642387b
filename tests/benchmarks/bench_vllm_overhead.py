"""What the labelling service adds to a bare vLLM: the same questions, the same concurrency, in turns within one run.

    python -m tests.benchmarks.bench_vllm_overhead [images] [rounds]

Both sides get one image per request from the same client. The bare server gets the requests that the service would
make, made beforehand; its caches are off, because a picture asked for again must cost as much as the first time.
Writes RUNS_ROOT/bench/vllm.json: ratio (service time / bare time, all rounds), seconds of each round.
"""

import asyncio
import base64
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from labeler.engines.vllm_server import VllmServer
from labeler.grounding import ground_image
from labeler.settings import load_settings
from shared.atomic_files import write_text
from shared.schemas import PARTS
from shared.synthetic import generate_dataset
from shared.workspace import Workspace
from tests.vllm.processes import NO_ENVIRONMENT, SERVED, labelling_service, make_checkpoint, tiny_vllm

FAMILY = "qwen2.5-vl"
CONCURRENCY = 16
NO_CACHES = ("--no-enable-prefix-caching", "--mm-processor-cache-gb", "0")


def main() -> None:
    if NO_ENVIRONMENT:
        sys.exit(f"error: {NO_ENVIRONMENT}")
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 96
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 6
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        contents = _crops(folder, images)
        checkpoint = make_checkpoint(FAMILY, folder / "model")
        with (
            tiny_vllm(FAMILY, checkpoint, folder / "vllm.log", *NO_CACHES) as server,
            labelling_service(server.url, FAMILY, folder / "service.log", max_attempts="1") as service,
        ):
            seconds = asyncio.run(_measure(server.url, service.url, contents, rounds))
    figures = {
        "ratio": round(sum(seconds["service"]) / sum(seconds["bare"]), 3),
        "images": images,
        "concurrency": CONCURRENCY,
        "images_per_s": {kind: round(images / statistics.median(times), 1) for kind, times in seconds.items()},
        "seconds": {kind: [round(time_s, 2) for time_s in times] for kind, times in seconds.items()},
    }
    write_text(Workspace.from_environment().runs_root / "bench" / "vllm.json", json.dumps(figures) + "\n")
    print(json.dumps(figures))


def _crops(folder: Path, count: int) -> list[bytes]:
    generate_dataset(
        folder, "campus", train_identities=-(-count // 8), test_identities=0, cameras=2, images_per_camera=4, seed=0
    )
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:count]]


async def _measure(bare: str, service: str, contents: Sequence[bytes], rounds: int) -> dict[str, list[float]]:
    questions = await _questions(contents)
    batches = [{"images": [base64.b64encode(content).decode()]} for content in contents]
    seconds: dict[str, list[float]] = {"bare": [], "service": []}
    turns = [("bare", f"{bare}/v1/chat/completions", questions), ("service", f"{service}/v1/ground", batches)]
    for number in range(rounds + 1):
        for kind, url, bodies in turns:
            elapsed = await _time(url, bodies)
            if number:  # the first round warms up
                seconds[kind].append(elapsed)
        turns.reverse()  # what else the machine does favours neither
    return seconds


async def _time(url: str, bodies: Sequence[dict[str, Any]]) -> float:
    """Seconds to send all bodies, CONCURRENCY at a time."""
    limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    async with httpx.AsyncClient(limits=limits, timeout=300, trust_env=False) as client:
        started = time.perf_counter()
        replies = await asyncio.gather(*(client.post(url, json=body) for body in bodies))
        elapsed = time.perf_counter() - started
    for reply in replies:
        reply.raise_for_status()
    return elapsed


async def _questions(contents: Sequence[bytes]) -> list[dict[str, Any]]:
    """The requests that the engine makes for the images, recorded."""
    recorded: list[dict[str, Any]] = []

    def record(request: httpx.Request) -> httpx.Response:
        recorded.append(json.loads(request.content))
        return httpx.Response(200, json={"choices": []})

    logging.getLogger("labeler.engines.token_check").setLevel(logging.ERROR)  # this server counts no tokens
    settings = load_settings(engine="vllm_server", model=SERVED[FAMILY])
    engine = VllmServer.from_settings(settings, httpx.MockTransport(record))
    for content in contents:
        await ground_image(engine, content, PARTS, max_pixels=settings.max_pixels, max_attempts=1)
    await engine.close()
    return [question for question in recorded if question["max_tokens"] > 1]  # not its counting of tokens


if __name__ == "__main__":
    main()
