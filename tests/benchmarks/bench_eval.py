"""Speed and memory of scoring, re-ranking and image loading, beside the usual ways to do them.

    python tests/benchmarks/bench_eval.py [market msmt rerank rerank-market images] [--scale 0.1] [--threads 2]
                                          [--dimensions 2048] [--images FOLDER]

Each is measured in a process of its own, on random features of people in noise; what is compared takes turns, and the
best round of each side counts. `--scale` shrinks every number of queries and gallery images. Writes
RUNS_ROOT/bench/eval.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shared.files import write_text
from shared.workspace import Workspace

SIZES = {  # queries, gallery images, people, cameras
    "market": (3368, 15_913, 750, 6),
    "msmt": (11_659, 82_161, 3060, 15),
    "rerank": (500, 2000, 250, 6),
    "rerank-market": (3368, 15_913, 750, 6),
}
IMAGES = 2048  # at most; crops that are loaded
BATCH = 64
GIB = 2**30


def features(name: str, scale: float, dimensions: int) -> tuple[Any, ...]:
    """Query and gallery: features float32, identities, cameras."""
    queries, gallery, people, cameras = SIZES[name]
    queries, gallery = max(2, round(queries * scale)), max(4, round(gallery * scale))
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((people + 1, dimensions), dtype=np.float32)
    sides = []
    for count in (queries, gallery):
        identities = rng.integers(1, people + 1, count)
        values = rng.standard_normal((count, dimensions), dtype=np.float32)
        values *= 2.5
        values += centres[identities]
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        sides += [values, identities, rng.integers(1, cameras + 1, count)]
    return tuple(sides)


def naive_scores(qf: Any, qi: Any, qc: Any, gf: Any, gi: Any, gc: Any) -> dict[str, float]:
    """The usual way: all distances, a full sort of every row, a Python loop over the queries."""
    distances = (qf**2).sum(1)[:, None] + (gf**2).sum(1)[None] - 2 * qf @ gf.T
    order = np.argsort(distances, axis=1)
    matches = gi[order] == qi[:, None]
    precisions, firsts = [], []
    for query in range(len(qf)):
        kept = ~((gi[order[query]] == qi[query]) & (gc[order[query]] == qc[query]))
        hits = matches[query][kept].astype(np.int32)
        if not hits.any():
            continue
        ranks = np.flatnonzero(hits) + 1
        precisions.append((np.cumsum(hits)[ranks - 1] / ranks).mean())
        firsts.append(ranks[0] == 1)
    return {"mean_ap": 100 * float(np.mean(precisions)), "rank_1": 100 * float(np.mean(firsts))}


def naive_re_ranking(qf: Any, gf: Any, kind: Any = np.float16, k1: int = 20, k2: int = 6, share: float = 0.3) -> Any:
    """The usual way (Zhong et al. 2017): dense tables, usually in half precision, loops over images and neighbours."""
    both = np.concatenate([qf, gf])
    total, queries = len(both), len(qf)
    original = (both**2).sum(1)[:, None] + (both**2).sum(1)[None] - 2 * both @ both.T
    original = (original / original.max(axis=0)).T.astype(np.float32)
    ranked = np.argsort(original, axis=1).astype(np.int32)
    weights = np.zeros((total, total), kind)

    def mutual(image: int, count: int) -> Any:
        forward = ranked[image, : count + 1]
        backward = ranked[forward, : count + 1]
        return forward[np.where(backward == image)[0]]

    for image in range(total):
        own = mutual(image, k1)
        expanded = own
        for candidate in own:
            theirs = mutual(candidate, int(np.around(k1 / 2)))
            if len(np.intersect1d(theirs, own)) > 2 / 3 * len(theirs):
                expanded = np.append(expanded, theirs)
        near = np.unique(expanded)
        weight = np.exp(-original[image, near])
        weights[image, near] = weight / weight.sum()
    original = original[:queries]
    averaged = np.zeros_like(weights)
    for image in range(total):
        averaged[image] = weights[ranked[image, :k2]].mean(axis=0)
    having = [np.where(averaged[:, image] != 0)[0] for image in range(total)]
    jaccard = np.zeros((queries, total), kind)
    for query in range(queries):
        shared = np.zeros(total, kind)
        for column in np.where(averaged[query] != 0)[0]:
            images = having[column]
            shared[images] += np.minimum(averaged[query, column], averaged[images, column])
        jaccard[query] = 1 - shared / (2 - shared)
    return (jaccard * (1 - share) + original * share)[:, queries:]


def bench_scores(name: str, options: argparse.Namespace) -> dict[str, Any]:
    from reid.metrics.retrieval import evaluate

    given = features(name, options.scale, options.dimensions)
    scores, seconds, peak = first_time(lambda: evaluate(*given).summary())
    if name != "market":
        return {"seconds": seconds, "peak_gib_beyond_features": peak}
    times = in_turns(
        3, ours=lambda: evaluate(*given), product=lambda: given[0] @ given[3].T, naive=lambda: naive_scores(*given)
    )
    rest = (times["naive"] - times["product"]) / (times["ours"] - times["product"])
    return {
        **{f"{side}_seconds": value for side, value in times.items()},
        "times_faster": round(times["naive"] / times["ours"], 1),
        "times_faster_without_product": round(rest, 1),
        "largest_difference": max(abs(scores[key] - value) / 100 for key, value in naive_scores(*given).items()),
        "first_seconds": seconds,
        "peak_gib_beyond_features": peak,
    }


def bench_re_ranking(name: str, options: argparse.Namespace) -> dict[str, Any]:
    from reid.metrics.rerank import k_reciprocal

    query, _, _, gallery, _, _ = features(name, options.scale, options.dimensions)
    found, seconds, peak = first_time(lambda: k_reciprocal(query, gallery))
    figures = {"first_seconds": seconds, "peak_gib_beyond_features": peak, "peak_gib": gib("VmHWM")}
    if name == "rerank":
        times = in_turns(5, ours=lambda: k_reciprocal(query, gallery), naive=lambda: naive_re_ranking(query, gallery))
        figures |= {f"{side}_seconds": value for side, value in times.items()}
        figures["times_faster"] = round(times["naive"] / times["ours"], 1)
        for key, kind in (("largest_difference", np.float32), ("largest_difference_half_precision", np.float16)):
            difference = np.abs(found - naive_re_ranking(query, gallery, kind))
            figures |= {key: float(difference.max()), f"mean{key.removeprefix('largest')}": float(difference.mean())}
    return figures


def bench_images(_: str, options: argparse.Namespace) -> dict[str, Any]:
    """Training batches of real crops: ours against PIL and torchvision's classic transforms, two workers each.

    Once with what the paper does to an image, and once with our crop and erasing beside the classic ones. Ours also
    moves three part boxes along and makes patches of them.
    """
    from torchvision import transforms as classic

    from reid.data.augment import Augmentation

    folder = options.images
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".bmp"}]
    files = files[: max(1, round(IMAGES * options.scale))]
    if not files:
        return {"skipped": f"no images under {folder}; name a folder with --images"}
    resize = [classic.Resize((256, 128), classic.InterpolationMode.BICUBIC), classic.RandomHorizontalFlip(0.5)]
    to_floats = [classic.ToTensor(), classic.Normalize([0.5] * 3, [0.5] * 3)]
    crop, erasing = [classic.Pad(10), classic.RandomCrop((256, 128))], [classic.RandomErasing(0.5)]
    jobs = {
        "paper": (Augmentation(flip=0.5), resize + to_floats),
        "crop_and_erasing": (
            Augmentation(flip=0.5, crop_padding=10, erasing=0.5),
            resize + crop + to_floats + erasing,
        ),
    }
    figures: dict[str, Any] = {"images": len(files)}
    for name, (augmentation, transform) in jobs.items():
        times = in_turns(4, ours=our_loading(files, augmentation), classic=usual_loading(files, transform))
        figures[name] = {f"{side}_images_per_s": round(len(files) / value, 1) for side, value in times.items()}
        figures[name]["times_faster"] = round(times["classic"] / times["ours"], 2)
    return figures


def our_loading(files: list[Path], augmentation: Any) -> Callable[[], None]:
    from reid.data.part_masks import PatchGrid
    from reid.data.person_images import PersonImages, in_order, load_batches
    from reid.data.transforms import TRAINING, normalised

    boxes = np.tile([[10.0, 0, 40, 30], [5, 25, 50, 90], [5, 80, 50, 160]], (len(files), 1, 1))
    grid = PatchGrid(256, 128, 16, 16)
    images = PersonImages(files, grid, TRAINING, boxes=boxes, augmentation=augmentation)

    def load() -> None:
        images.epoch += 1
        found = sum(len(normalised(batch.images)) for batch in load_batches(images, in_order(len(files), BATCH), 2))
        assert found == len(files)

    return load


def usual_loading(files: list[Path], steps: list[Any]) -> Callable[[], None]:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms as classic

    transform = classic.Compose(steps)

    class Usual(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            found: torch.Tensor = transform(Image.open(files[index]).convert("RGB"))
            return found

    def load() -> None:
        assert sum(len(batch) for batch in DataLoader(Usual(), batch_size=BATCH, num_workers=2)) == len(files)

    return load


BENCHES: dict[str, Callable[[str, argparse.Namespace], dict[str, Any]]] = {
    "market": bench_scores,
    "msmt": bench_scores,
    "rerank": bench_re_ranking,
    "rerank-market": bench_re_ranking,
    "images": bench_images,
}


def in_turns(rounds: int, **works: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the best round of each, one after another in every round: a busy moment meets them all."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            best[name] = min(best[name], round(time.perf_counter() - started, 4))
    return best


def first_time(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What the work gives, its seconds, and the GiB of memory that it needed more than was there before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, started = gib("VmRSS"), time.perf_counter()
    found = work()
    return found, round(time.perf_counter() - started, 3), round(gib("VmHWM") - before, 2)


def gib(figure: str) -> float:
    """A line of /proc/self/status: VmRSS is the memory this process has, VmHWM the most it has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(figure)) * 1024 / GIB, 2)


def machine() -> dict[str, Any]:
    import torch

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    numpy = f"{np.__version__} with {blas['name']} {blas['version']}"
    return {"cpu": model, "cpus": os.cpu_count(), "numpy": numpy, "torch": torch.__version__}


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and memory of scoring, re-ranking and image loading.")
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(BENCHES)}; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of queries and gallery images")
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=Path, default=Workspace.from_environment().data_root)
    parser.add_argument("--here", action="store_true", help="measure in this process and print the figures only")
    found = parser.parse_args(arguments)
    if unknown := set(found.names) - BENCHES.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(BENCHES)}")
    return found


def main() -> None:
    options = options_of(sys.argv[1:])
    if options.here:
        print(json.dumps(BENCHES[options.names[0]](options.names[0], options)))
        return
    # both sides run at the library's own best: nothing that was set for another machine
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    environment |= {f"{name}_NUM_THREADS": str(options.threads) for name in ("OMP", "OPENBLAS", "MKL")}
    path = Workspace.from_environment().runs_root / "bench" / "eval.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    figures["machine"] = machine()
    for name in options.names or BENCHES:
        command = [sys.executable, __file__, name, "--here", f"--scale={options.scale}"]
        command += [f"--dimensions={options.dimensions}", f"--images={options.images}"]
        load = round(os.getloadavg()[0], 2)
        ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        figures[name] = json.loads(ended.stdout.splitlines()[-1])
        figures[name] |= {"scale": options.scale, "threads": options.threads, "load_before": load}
        print(name, json.dumps(figures[name]), flush=True)
        write_text(path, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
