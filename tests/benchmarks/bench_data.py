"""What feeds a training: packing, packed batches, the time around a step, and a training set of a million rows.

    python tests/benchmarks/bench_data.py [packed decode epoch identities training-set] [--rows 1000000]
                                            [--images FOLDER]

packed: images per second from a pack at 256 x 128, gathered, half of them mirrored, as normalised float32 batches.
decode: images per second of making such a pack from crops under --images (default: DATA_ROOT), once; beside it the
    ceiling: as many processes as there are processors that do nothing but read, decode and resize the same files.
epoch: the share of a stage-2 epoch of 2,000 crops with the preset pocket that is spent outside the model's own forward
    and backward passes and the optimiser's steps (the feature bank's forward pass counts as the model's own).
identities: peak memory (GB), beyond the tables and their gradients, and seconds of the three losses over 500,000
    identities with 64 features of 64 numbers, forward and backward: in blocks, and with all logits at once.
training-set: seconds and peak memory (GB) from manifest and label shards on disk to the training set, in a process of
    its own.
Writes RUNS_ROOT/bench/data.json. Run it on an otherwise idle machine.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from shared.files import write_text
from shared.workspace import Workspace

SIZE = (256, 128)
BATCH = 64
ROUNDS = 3  # the best counts
CROPS = 2000  # of the epoch
IDENTITIES = 500_000
NAME = "crops"  # of the data set that is made of the files


def crops_of(folder: Path, count: int) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".bmp"}]
    if not files:
        raise SystemExit(f"no images under {folder}; name a folder with --images")
    return [files[index * len(files) // count % len(files)] for index in range(count)]


@contextlib.contextmanager
def data_set(options: argparse.Namespace, count: int, per_person: int) -> Iterator[Workspace]:
    """A data set of its own: links to `count` crops, `per_person` of every identity, scanned and with prior boxes."""
    from shared.manifest import build_manifest

    with tempfile.TemporaryDirectory() as place:
        workspace = Workspace(Path(place) / "data", Path(place) / "runs")
        folder = workspace.data_root / NAME / "bounding_box_train"
        folder.mkdir(parents=True)
        for split in ("query", "bounding_box_test"):
            (folder.parent / split).mkdir()
        for number, path in enumerate(crops_of(options.images, count)):
            name = f"{number // per_person + 1:04d}_c{number % 6 + 1}s1_{number:06d}_00{path.suffix.lower()}"
            shutil.copy(path, folder / name)
        (folder.parent / "dataset.yaml").write_text("layout: market1501\n")
        build_manifest(NAME, workspace.data_root, workspace.manifest(NAME))
        yield workspace


def pack(workspace: Workspace, mode: str = "bicubic") -> Any:
    from reid.data.packing import packed_images
    from shared.manifest import read_manifest

    rows = read_manifest(workspace.manifest(NAME))
    given: dict[str, Any] = {"workspace": workspace, "size": SIZE, "mode": mode, "limit_bytes": 2**40}
    return rows, packed_images([NAME] * len(rows), [row.path for row in rows], **given)


def bench_packed(options: argparse.Namespace) -> dict[str, Any]:
    from reid.data.augment import Augmentation
    from reid.data.part_masks import PatchGrid
    from reid.data.person_images import PersonImages, load_batches
    from reid.data.transforms import normalised

    with data_set(options, 4096, 4) as workspace:
        rows, packed = pack(workspace)
        boxes = np.tile([[10.0, 0, 40, 30], [5, 25, 50, 90], [5, 80, 50, 160]], (len(rows), 1, 1))
        images = PersonImages(
            [workspace.data_root / NAME / row.path for row in rows],
            PatchGrid(*SIZE, 16, 16),
            "bicubic",
            boxes=boxes,
            augmentation=Augmentation(flip=0.5),
            packed=packed,
        )
        order = np.random.default_rng(0).permutation(len(rows)).tolist()
        plan = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]

        def once() -> None:
            images.epoch += 1
            found = sum(len(normalised(batch.images)) for batch in load_batches(images, plan, 0))
            assert found == len(rows)

        seconds = best_of(ROUNDS, once)
    return {"packed_images_per_s": round(len(rows) / seconds, 1), "packed_images": len(rows)}


def bench_decode(options: argparse.Namespace) -> dict[str, Any]:
    with data_set(options, 4096, 4) as workspace:
        rows, _ = pack(workspace, "bilinear")  # warm: the files are in memory, the decoders are loaded

        def once() -> None:
            for path in workspace.image_cache.glob("*bicubic*"):
                path.unlink()
            pack(workspace)

        seconds = best_of(ROUNDS, once)
        paths = [workspace.data_root / NAME / row.path for row in rows]
        processes = len(os.sched_getaffinity(0))
        shares = [paths[first::processes] for first in range(processes)]
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            pool.map(bare_decode, shares, chunksize=1)
            ceiling = len(paths) / best_of(ROUNDS, lambda: pool.map(bare_decode, shares, chunksize=1))
    rate = len(rows) / seconds
    pixels = sum(row.width * row.height for row in rows) / len(rows)
    kinds = {suffix: sum(row.path.endswith(suffix) for row in rows) for suffix in (".jpg", ".jpeg", ".png", ".bmp")}
    return {
        "decode_images_per_s": round(rate, 1),
        "decode_ceiling_images_per_s": round(ceiling, 1),
        "decode_share_of_ceiling": round(rate / ceiling, 3),
        "decode_images": len(rows),
        "decode_files": kinds,
        "decode_mean_pixels": round(pixels),
    }


def bare_decode(paths: list[Path]) -> None:
    """Read, decode and resize files, in one thread, with the libraries alone."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for path in paths:
        found = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
        image = torch.from_numpy(found).permute(2, 0, 1)[None]
        torch.nn.functional.interpolate(image, SIZE, mode="bicubic", antialias=True)


def bench_epoch(options: argparse.Namespace) -> dict[str, Any]:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer

    import reid.inference.embed
    import reid.training.stage2 as stage2
    from reid.config import load_config
    from reid.data.training_set import build_training_set
    from reid.model.muva import Muva, build_model
    from reid.protocols.protocol import parse_protocol
    from reid.training.job import make_job
    from reid.training.stage1 import PROMPTS, save_prompts

    inside = 0.0
    depth = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            nonlocal inside, depth
            depth += 1
            started = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                depth -= 1
                if not depth:
                    inside += time.perf_counter() - started

        return run

    with data_set(options, CROPS, 4) as workspace:
        (workspace.data_root / "other" / "query").mkdir(parents=True)
        overrides = ["data.missing_labels=prior", "stage2.epochs=1", "device=cpu", "precision=32-true"]
        name = f"{NAME}2viper"
        config = load_config("pocket", overrides, protocol=name, allow_pretrained_targets=True)
        protocol = parse_protocol(name, workspace.data_root)
        data = build_training_set(protocol, config.data, config.model.parts, workspace)
        model = build_model(config.model, len(data.identities), seed=0)
        job = make_job(config, data, workspace, workspace.runs_root / "run", model.grid)
        save_prompts(model, job.folder / "stage1" / PROMPTS, data)
        whole: list[float] = []
        epoch = stage2._epoch

        def timed(*given: Any) -> Any:
            nonlocal inside
            inside, started = 0.0, time.perf_counter()
            row = epoch(*given)
            whole.append(time.perf_counter() - started)
            whole.append(inside)
            return row

        stage2._epoch = timed
        _FabricModule.forward = counted(_FabricModule.forward)  # type: ignore[method-assign]
        _FabricOptimizer.step = counted(_FabricOptimizer.step)  # type: ignore[method-assign]
        Fabric.backward = counted(Fabric.backward)  # type: ignore[method-assign]
        for part in ("encode_images", "neck"):
            setattr(Muva, part, counted(getattr(Muva, part)))
        assert reid.inference.embed.bank_features
        stage2.train_images(model, job, job.folder / "stage1" / PROMPTS)
    seconds, own = whole
    return {"epoch_overhead_share": round(1 - own / seconds, 4), "epoch_seconds": round(seconds, 2)}


def bench_identities(options: argparse.Namespace) -> dict[str, Any]:
    """Each way in a process of its own."""
    found: dict[str, Any] = {"identities": IDENTITIES}
    for step in ("losses-in-blocks", "losses-at-once"):
        command = [sys.executable, __file__, step]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found |= {f"{step.replace('-', '_')}_{key}": value for key, value in json.loads(ended.stdout).items()}
    found["losses_differ_by"] = abs(found["losses_in_blocks_sum"] - found["losses_at_once_sum"])
    return found


def measure_losses(options: argparse.Namespace) -> None:
    import torch
    import torch.nn.functional as F

    import reid.training.class_loss
    from reid.training.losses import IdentityMemory, identity_loss, text_loss

    if options.names[0] == "losses-at-once":
        reid.training.class_loss.BLOCK_BYTES = 2**62
    generator = torch.Generator().manual_seed(0)
    classes, text, rows = (torch.randn(IDENTITIES, 64, generator=generator) * 0.1 for _ in range(3))
    memory = IdentityMemory(F.normalize(rows, dim=1), temperature=0.01, momentum=0.2)
    features, labels = torch.randn(BATCH, 64, generator=generator), torch.arange(BATCH) // 4
    classes.requires_grad_()
    classes.grad = torch.zeros_like(classes)

    def step() -> float:
        own = features.clone().requires_grad_()
        loss = identity_loss(own, classes, labels, 0.1)[0] + text_loss(own, text, labels, 0.1)
        loss = loss + memory(F.normalize(own, dim=1), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    del rows
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, started = status_gb("VmRSS"), time.perf_counter()
    total = step()
    figures = {"gb": round(peak_gb() - before, 3), "seconds": round(time.perf_counter() - started, 2), "sum": total}
    print(json.dumps(figures))


def bench_training_set(options: argparse.Namespace) -> dict[str, Any]:
    """Generates the rows in one process and reads them in another, whose peak counts."""
    with tempfile.TemporaryDirectory() as place:
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "DATA_ROOT": f"{place}/data", "RUNS_ROOT": f"{place}/runs", "PYTHONPATH": root}
        for step in ("generate-rows", "read-rows"):
            command = [sys.executable, __file__, step, f"--rows={options.rows}"]
            ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return found


def generate_rows(options: argparse.Namespace) -> None:
    import pyarrow as pa

    from shared.labels import label_folder, write_label_table
    from shared.parquet import write_table
    from shared.schemas import LABEL_SCHEMA, MANIFEST_SCHEMA, PARTS

    workspace, count = Workspace.from_environment(), options.rows
    folder = workspace.data_root / NAME
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        (folder / split).mkdir(parents=True)
    (folder / "dataset.yaml").write_text("layout: market1501\n")
    rng = np.random.default_rng(0)

    def repeated(value: Any, kind: pa.DataType, length: int) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), length)

    numbers = np.arange(count)
    paths = pa.array([f"bounding_box_train/{n // 20:07d}_c{n % 6 + 1}s1_{n:08d}_00.jpg" for n in range(count)])
    ids = pa.array([f"{value:016x}" for value in rng.permutation(count)])
    columns: dict[str, Any] = {
        "dataset": repeated(NAME, pa.string(), count),
        "split": repeated("train", pa.string(), count),
        "path": paths,
        "image_id": ids,
        "width": repeated(64, pa.int32(), count),
        "height": repeated(128, pa.int32(), count),
        "kind": repeated("person", pa.string(), count),
        "identity": pa.array(numbers // 20),
        "camera": pa.array((numbers % 6 + 1).astype(np.int32)),
        "identity_name": pa.nulls(count, pa.string()),
        "camera_name": pa.nulls(count, pa.string()),
        "status": repeated("ok", pa.string(), count),
        "reason": repeated("", pa.string(), count),
        "size_bytes": repeated(4000, pa.int64(), count),
        "modified_ns": repeated(1, pa.int64(), count),
    }
    write_table(pa.table(columns, schema=MANIFEST_SCHEMA), workspace.manifest(NAME))
    shard = 100_000
    for start in range(0, count, shard):
        length = min(shard, count - start)
        for place, part in enumerate(PARTS):
            top = 40.0 * place + rng.uniform(0, 4, length)
            answers: dict[str, Any] = {
                "label_run": repeated("generated", pa.string(), length),
                **{name: columns[name].slice(start, length) for name in ("dataset", "split", "path", "image_id")},
                **{name: columns[name].slice(start, length) for name in ("width", "height")},
                "part": repeated(part, pa.string(), length),
                **{"x_min": pa.array(rng.uniform(0, 9, length)), "y_min": pa.array(top)},
                **{"x_max": pa.array(rng.uniform(40, 64, length)), "y_max": pa.array(top + 40)},
                "status": repeated("ok", pa.string(), length),
                **{name: pa.nulls(length, pa.float64()) for name in ("score", "agreement")},
                "flags": pa.array([[]] * length, pa.list_(pa.string())),
                "raw_box": pa.nulls(length, pa.list_(pa.float64())),
                "raw_text": pa.nulls(length, pa.string()),
                **{name: repeated("generated", pa.string(), length) for name in ("space", "engine", "model")},
                "prompt_version": repeated("1", pa.string(), length),
                "attempts": repeated(1, pa.int32(), length),
                "created_at": repeated(datetime(2026, 1, 1, tzinfo=UTC), pa.timestamp("us", tz="UTC"), length),
            }
            folder = label_folder(workspace.labels, "generated", NAME, "train")
            write_label_table(pa.table(answers, schema=LABEL_SCHEMA), folder)


def read_rows(options: argparse.Namespace) -> None:
    from reid.config import load_config
    from reid.data.samplers import IdentityBatches
    from reid.data.training_set import build_training_set
    from reid.protocols.protocol import parse_protocol
    from shared.schemas import PARTS

    workspace = Workspace.from_environment()
    config = load_config("paper", protocol=f"{NAME}2viper")
    protocol = parse_protocol(config.protocol, workspace.data_root)
    before, started = peak_gb(), time.perf_counter()
    data = build_training_set(protocol, config.data, PARTS, workspace)
    digest = data.sha256
    seconds = time.perf_counter() - started
    batches = IdentityBatches(data.labels, identities_per_batch=16, images_per_identity=4, seed=0).epoch(1)
    assert len(data) == options.rows and digest and len(batches) * 64 <= options.rows
    found = {"training_set_seconds": round(seconds, 2), "training_set_peak_gb": round(peak_gb(), 3)}
    found |= {"training_set_rows": options.rows, "peak_gb_before": round(before, 3)}
    found["with_sampler_seconds"] = round(time.perf_counter() - started, 2)
    print(json.dumps(found))


def peak_gb() -> float:
    return status_gb("VmHWM")


def status_gb(figure: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(figure)) * 1024 / 1e9


def best_of(rounds: int, work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


BENCHES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "packed": bench_packed,
    "decode": bench_decode,
    "epoch": bench_epoch,
    "identities": bench_identities,
    "training-set": bench_training_set,
}
STEPS = {
    "generate-rows": generate_rows,
    "read-rows": read_rows,
    "losses-in-blocks": measure_losses,
    "losses-at-once": measure_losses,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(BENCHES)}; default: all")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the manifest")
    parser.add_argument("--images", type=Path, default=Workspace.from_environment().data_root)
    options = parser.parse_args()
    if unknown := set(options.names) - BENCHES.keys() - STEPS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(BENCHES)}")
    if options.names and options.names[0] in STEPS:
        STEPS[options.names[0]](options)
        return
    path = Workspace.from_environment().runs_root / "bench" / "data.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    figures["machine"] = {"machine": platform.machine(), "cpus": os.cpu_count()}
    for name in options.names or BENCHES:
        load = round(os.getloadavg()[0], 2)
        found = BENCHES[name](options)
        figures |= found
        figures.setdefault("load_before", {})[name] = load
        print(name, json.dumps(found), flush=True)
        write_text(path, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
