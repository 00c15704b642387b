"""Exports against the model: largest difference and mAP of every variant of a run, and ONNX Runtime's speed.

    python -m tests.benchmarks.bench_export [--run NAME] [--seconds 20]

Writes runs/bench/export.json. Speed is of ViT-B/16 with parts (256 x 128, random weights), batch 16, on all cores:
eager, torch.compile and ONNX Runtime in turn, the median of each; without --run only speed is measured.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipelines.__main__ import run as command
from reid.config import load_config
from reid.inference.encoder import PersonEncoder
from reid.inference.export import ImageTower, export_onnx, onnx_session, tool_input
from reid.model.muva import build_model
from shared.files import write_text
from shared.workspace import Workspace

VARIANTS = {
    "raw": ["--preprocess", "raw"],
    "unit": ["--preprocess", "unit"],
    "imagenet": ["--preprocess", "imagenet"],
    "torch": ["--format", "torch"],
    "hf": ["--format", "hf"],
    "float16": ["--precision", "float16"],
    "int8": ["--precision", "int8"],
}
BATCH = 16


def parity(run: str, folder: Path) -> dict[str, Any]:
    told = {}
    for name, options in VARIANTS.items():
        out = folder / name
        if code := command(["export", "--run", run, "--out", str(out), *options]):
            raise SystemExit(code)
        record = json.loads((out / "export.json").read_text())
        scores = record.get("mean_ap")
        told[name] = {
            "max_difference": record["check"]["max_difference"],
            "same_order": record["check"]["same_order"],
            # an export in float32 of the same order of neighbours has the same mAP
            "map_drop": round(scores["before"] - scores["after"], 3) if scores else 0.0,
            **({"map": scores} if scores else {}),
        }
    return told


def speed(seconds: float, folder: Path) -> dict[str, Any]:
    config = load_config("paper", ["model.pretrained=null"])
    encoder = PersonEncoder(build_model(config.model, 10, seed=0, load_weights=False), config.model.parts)
    crops = torch.randint(
        0, 256, (64, 3, *encoder.image_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    check = export_onnx(encoder, folder / "vit.onnx", crops, preprocess="raw")
    images = torch.from_numpy(tool_input(crops[:BATCH], "raw"))
    tower = ImageTower(encoder.model, "raw").eval()
    compiled: Any = torch.compile(tower)
    session = onnx_session(folder / "vit.onnx", len(os.sched_getaffinity(0)))
    ways: dict[str, Callable[[], Any]] = {
        "eager": lambda: tower(images),
        "compiled": lambda: compiled(images),
        "onnx": lambda: session.run(None, {"images": images.numpy()}),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for way in ways.values():
            way()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for name, way in ways.items():  # in turn, so that a busy moment hits all of them
                started = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "rounds": len(times["onnx"]),
        "vit_b16_max_difference": check.max_difference,
        **{f"{name}_ms": round(1000 * value, 1) for name, value in median.items()},
        "onnx_over_compiled": round(median["onnx"] / median["compiled"], 3),
        "onnx_over_eager": round(median["onnx"] / median["eager"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run")
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as temporary:
        told = speed(given.seconds, Path(temporary))
        variants = parity(given.run, Path(temporary)) if given.run else {}
    told = {**told, "variants": variants}
    write_text(Workspace.from_environment().runs_root / "bench" / "export.json", json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
