"""Speed and memory of scoring, re-ranking and image loading, beside the usual ways to do them.

    python tests/benchmarks/bench_eval.py [market msmt rerank rerank-market images] [--scale 0.1] [--threads 2]
                                          [--dimensions 2048] [--images FOLDER]

Each is measured in a process of its own, on random features of people in noise. `--scale` shrinks every number of
queries and gallery images. Writes RUNS_ROOT/bench/eval.json.
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

from shared.atomic_files import write_text
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
    order = np.argsort(distances, axis=1, kind="stable")
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
    from reid.metrics import evaluate

    given = features(name, options.scale, options.dimensions)
    before = peak_gib()
    ours, seconds = timed(lambda: evaluate(*given).summary())
    figures: dict[str, Any] = {"seconds": seconds, "peak_gib_beyond_features": round(peak_gib() - before, 2)}
    if name == "market":
        _, product = timed(lambda: given[0] @ given[3].T)
        theirs, naive = timed(lambda: naive_scores(*given))
        rest = (naive - product) / max(seconds - product, 1e-9)
        figures |= {"naive_seconds": naive, "product_seconds": product}
        figures |= {"times_faster": round(naive / seconds, 1), "times_faster_without_product": round(rest, 1)}
        figures["largest_difference"] = max(abs(ours[key] - value) / 100 for key, value in theirs.items())
    return figures


def bench_re_ranking(name: str, options: argparse.Namespace) -> dict[str, Any]:
    from reid.rerank import k_reciprocal

    query, _, _, gallery, _, _ = features(name, options.scale, options.dimensions)
    before = peak_gib()
    k_reciprocal(query[:4], gallery[:40])  # the first product starts threads
    ours, seconds = timed(lambda: k_reciprocal(query, gallery), rounds=3 if name == "rerank" else 1)
    figures: dict[str, Any] = {"seconds": seconds, "peak_gib_beyond_features": round(peak_gib() - before, 2)}
    figures["peak_gib"] = round(peak_gib(), 2)
    if name == "rerank":
        theirs, naive = timed(lambda: naive_re_ranking(query, gallery), rounds=3)
        figures |= {"naive_seconds": naive, "times_faster": round(naive / seconds, 1)}
        figures["largest_difference"] = float(np.abs(ours - naive_re_ranking(query, gallery, np.float32)).max())
        figures["largest_difference_half_precision"] = float(np.abs(ours - theirs).max())
    return figures


def bench_images(_: str, options: argparse.Namespace) -> dict[str, Any]:
    """Training batches of real crops: ours against PIL and torchvision's classic transforms, two workers each."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from reid.augment import Augmentation
    from reid.images import PersonImages, in_order, load_batches
    from reid.part_masks import PatchGrid
    from reid.transforms import TRAINING, normalised

    folder = options.images
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".bmp"}]
    files = files[: max(1, round(IMAGES * options.scale))]
    if not files:
        return {"skipped": f"no images under {folder}; name a folder with --images"}
    augmentation = Augmentation(flip=0.5, crop_padding=10, erasing=0.5)
    ours = PersonImages(files, PatchGrid(256, 128, 16, 16), TRAINING, augmentation=augmentation)
    ours.cached = False  # what is measured is decoding

    def load_ours() -> int:
        return sum(len(normalised(batch.images)) for batch in load_batches(ours, in_order(len(files), BATCH), 2))

    classic = transforms.Compose(
        [
            transforms.Resize((256, 128), transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(0.5),
            transforms.Pad(10),
            transforms.RandomCrop((256, 128)),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
            transforms.RandomErasing(0.5),
        ]
    )

    class Usual(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            found: torch.Tensor = classic(Image.open(files[index]).convert("RGB"))
            return found

    def load_usual() -> int:
        return sum(len(batch) for batch in DataLoader(Usual(), batch_size=BATCH, num_workers=2))

    load_ours(), load_usual()  # both find the files in memory
    images, seconds = timed(load_ours)
    _, usual = timed(load_usual)
    return {
        "images": images,
        "images_per_s": round(images / seconds, 1),
        "classic_images_per_s": round(images / usual, 1),
        "times_faster": round(usual / seconds, 2),
    }


BENCHES: dict[str, Callable[[str, argparse.Namespace], dict[str, Any]]] = {
    "market": bench_scores,
    "msmt": bench_scores,
    "rerank": bench_re_ranking,
    "rerank-market": bench_re_ranking,
    "images": bench_images,
}


def timed(work: Callable[[], Any], rounds: int = 1) -> tuple[Any, float]:
    """What the work gives, and the seconds of its best round."""
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - started)
    return result, round(best, 3)


def peak_gib() -> float:
    """The most memory this process has had so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / GIB


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
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    path = Workspace.from_environment().runs_root / "bench" / "eval.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name in options.names or BENCHES:
        command = [sys.executable, __file__, name, "--here", f"--scale={options.scale}"]
        command += [f"--dimensions={options.dimensions}", f"--images={options.images}"]
        load = round(os.getloadavg()[0], 2)
        ended = subprocess.run(command, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=True)
        figures[name] = json.loads(ended.stdout.splitlines()[-1])
        figures[name] |= {"scale": options.scale, "threads": options.threads, "load_before": load}
        print(name, json.dumps(figures[name]), flush=True)
        write_text(path, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
