"""What the labelling service adds to a bare vLLM: the same questions, the same concurrency, in turns within one run.

    python -m tests.benchmarks.bench_vllm_overhead [images] [rounds] [--anywhere]

Both sides get one image per request from the same client, which keeps CONCURRENCY requests in flight. The service gets
a crop and does everything: decoding, enlarging, encoding, asking, parsing. The bare server gets the very requests that
the service would make, made beforehand and not timed, so all of that work counts as added. The server's caches are off,
because a picture asked for again must cost as much as the first time; attempts are one, because random weights fail.
vLLM binds the worker that computes the model to cores of its own and leaves some free for what is around it; client and
service run on those, on both sides (--anywhere: wherever the system puts them, also where they push the worker aside).

Writes RUNS_ROOT/bench/vllm.json:
    ratio                service time / bare time, sums over all rounds
    ratio_by_round       of each pair of neighbours; ratio_median of them, which other work on the machine moves less
    seconds              of each round
    cpu_ms_per_image     processor time by process, of all rounds; the server's contains its threads' waiting in loops
"""

import asyncio
import base64
import json
import logging
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from labeler.engines.vllm_server import VllmServer
from labeler.grounding.ground import ground_image
from labeler.settings import load_settings
from pipelines.synthetic import generate_dataset
from shared.files import write_text
from shared.schemas import PARTS
from shared.workspace import Workspace
from tests.vllm.processes import NO_ENVIRONMENT, SERVED, Server, labelling_service, make_checkpoint, tiny_vllm

FAMILY = "qwen2.5-vl"
CONCURRENCY = 16
NO_CACHES = ("--no-enable-prefix-caching", "--mm-processor-cache-gb", "0")


def main() -> None:
    if NO_ENVIRONMENT:
        sys.exit(f"error: {NO_ENVIRONMENT}")
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    images, rounds = (*numbers, *(96, 10)[len(numbers) :])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        contents = _crops(folder, images)
        checkpoint = make_checkpoint(FAMILY, folder / "model")
        with tiny_vllm(FAMILY, checkpoint, folder / "vllm.log", *NO_CACHES) as server:
            cores = None if "--anywhere" in sys.argv else _cores_left(folder / "vllm.log")
            if cores:
                os.sched_setaffinity(0, cores)  # of this process and of the service, its child
            with labelling_service(server.url, FAMILY, folder / "service.log", max_attempts="1") as service:
                rounds_of = asyncio.run(_measure(server, service, contents, rounds))
    seconds = {kind: [figures["seconds"] for figures in rounds_of[kind]] for kind in rounds_of}
    ratios = [service_s / bare_s for service_s, bare_s in zip(seconds["service"], seconds["bare"], strict=True)]
    result = {
        "ratio": round(sum(seconds["service"]) / sum(seconds["bare"]), 3),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_by_round": [round(ratio, 3) for ratio in ratios],
        "images": images,
        "concurrency": CONCURRENCY,
        "cores_of_client_and_service": sorted(cores) if cores else "any",
        "images_per_s": {kind: round(images / statistics.median(times), 1) for kind, times in seconds.items()},
        "seconds": {kind: [round(time_s, 2) for time_s in times] for kind, times in seconds.items()},
        "cpu_ms_per_image": {
            kind: {
                process: round(statistics.mean(figures[process] for figures in rounds_of[kind]) / images * 1000, 2)
                for process in ("model_server", "service", "client")
            }
            for kind in rounds_of
        },
    }
    write_text(Workspace.from_environment().runs_root / "bench" / "vllm.json", json.dumps(result) + "\n")
    print(json.dumps(result))


def _cores_left(log: Path) -> set[int]:
    """What vLLM says that it leaves to others; empty where it needs all."""
    told = re.search(r"reserved_cpus=\[([\d, ]*)\]", log.read_text(errors="replace"))
    return {int(core) for core in re.findall(r"\d+", told[1])} if told else set()


def _crops(folder: Path, count: int) -> list[bytes]:
    generate_dataset(
        folder, "campus", train_identities=-(-count // 8), test_identities=0, cameras=2, images_per_camera=4, seed=0
    )
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:count]]


async def _measure(
    server: Server, service: Server, contents: Sequence[bytes], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Seconds, and seconds of processor time by process, of every round of both sides."""
    questions = await _questions(contents)
    batches = [{"images": [base64.b64encode(content).decode()]} for content in contents]
    measured: dict[str, list[dict[str, float]]] = {"bare": [], "service": []}
    turns = [
        ("bare", f"{server.url}/v1/chat/completions", questions),
        ("service", f"{service.url}/v1/ground", batches),
    ]
    for number in range(rounds + 1):
        for kind, url, bodies in turns:
            before = {"model_server": server.cpu_s(), "service": service.cpu_s(), "client": time.process_time()}
            elapsed = await _time(url, bodies)
            after = {"model_server": server.cpu_s(), "service": service.cpu_s(), "client": time.process_time()}
            if number:  # the first round warms up
                measured[kind].append({"seconds": elapsed} | {name: after[name] - before[name] for name in after})
        turns.reverse()  # what else the machine does favours neither
    return measured


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
