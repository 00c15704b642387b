"""Exact and approximate search of a million features of 512 numbers (float16 on disk) on two cores.

    python -m tests.benchmarks.bench_search [--rows 1000000] [--queries 1000] [--skip-index] [--prepare]

Writes runs/bench/search.json. The features are those of people: 20 images each around a centre, in a subspace of 64
dimensions with noise in all 512, as features of one model are; in random directions no index could find anything.
exact_seconds is end to end in a process of its own: opening the folder, all queries, all results.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from reid.inference.embeddings import EmbeddingStore, Kind, writing
from reid.retrieval.approximate import ApproximateSearch, read_record, synchronise
from reid.retrieval.search import exact_search
from shared.files import write_text
from shared.workspace import Workspace

F, IMAGES, SUBSPACE, SHARD, TOP = 512, 20, 64, 50_000, 10


def features(start: int, count: int, camera: int = 0) -> np.ndarray:
    """Rows start .. start + count, the same for the same numbers."""
    basis = np.random.default_rng(1).normal(size=(SUBSPACE, F)).astype(np.float32)
    people = np.arange(start, start + count) // IMAGES
    first, last = people[0], people[-1]
    centres = np.stack([np.random.default_rng((2, n)).normal(size=SUBSPACE) for n in range(first, last + 1)])
    rng = np.random.default_rng((3, start, camera))
    rows = (centres[people - first] + 0.5 * rng.normal(size=(count, SUBSPACE))).astype(np.float32) @ basis
    rows += 2.0 * rng.standard_normal((count, F), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def build(folder: Path, rows: int) -> None:
    if folder.is_dir() and len(EmbeddingStore(folder)) == rows:
        return
    with writing(folder, Kind("0" * 16, (), F)) as writer:
        for start in range(0, rows, SHARD):
            count = min(SHARD, rows - start)
            names = [f"{n:08d}.jpg" for n in range(start, start + count)]
            facts = [
                {"key": f"/g/{name}", "image_id": f"{n:016x}", "path": name, "folder": "/g", "size_bytes": 1,
                 "modified_ns": 1, "identity": str((start + n) // IMAGES)}
                for n, name in enumerate(names)
            ]  # fmt: skip
            writer.add(facts, features(start, count), np.zeros((count, 0), np.float32))


def asked(rows: int, queries: int) -> np.ndarray:
    """Other images of people spread over the gallery."""
    people = np.linspace(0, rows // IMAGES - 1, queries).astype(int)
    return np.concatenate([features(int(n) * IMAGES, 1, camera=1) for n in people])


def exact(folder: Path, rows: int, queries: int, out: Path) -> None:
    """In a process of its own: time and peak memory."""
    given = asked(rows, queries)
    started = time.perf_counter()
    store = EmbeddingStore(folder)
    found = exact_search(store, given, np.zeros((queries, 0), np.float32), TOP)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    np.savez(out, rows=found.rows, seconds=seconds, peak_gb=peak)


def brute_force(store: EmbeddingStore, given: np.ndarray) -> np.ndarray:
    """The first TOP rows in float64, for a few queries, ties to the earlier row."""
    values = [block.features.astype(np.float64) @ given.T.astype(np.float64) for block in store.blocks(20_000)]
    lengths = [np.linalg.norm(block.features.astype(np.float64), axis=1) for block in store.blocks(20_000)]
    similarity = np.concatenate(values) / np.concatenate(lengths)[:, None]
    return np.argsort(-similarity, axis=0, kind="stable")[:TOP].T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--skip-index", action="store_true")
    parser.add_argument("--prepare", action="store_true", help="only make the gallery and its index")
    parser.add_argument("--exact", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.exact:
        exact(Path(given.exact[0]), given.rows, given.queries, Path(given.exact[1]))
        return
    bench = Workspace.from_environment().runs_root / "bench"
    folder, result = bench / f"search-{given.rows}", bench / "search-exact.npz"
    build(folder, given.rows)
    if given.prepare:
        store = EmbeddingStore(folder)
        print(read_record(store) or synchronise(store))
        return
    sizes = ["--rows", str(given.rows), "--queries", str(given.queries)]
    module = [sys.executable, "-m", "tests.benchmarks.bench_search"]
    subprocess.run([*module, *sizes, "--exact", str(folder), str(result)], check=True)
    with np.load(result) as found:
        rows, seconds, peak = found["rows"], float(found["seconds"]), float(found["peak_gb"])
    store, queries = EmbeddingStore(folder), asked(given.rows, given.queries)
    same = bool((brute_force(store, queries[:20]) == rows[:20]).all())
    told = {
        "rows": given.rows, "queries": given.queries, "features": F, "cores": len(os.sched_getaffinity(0)),
        "exact_seconds": round(seconds, 2), "exact_peak_gb": round(peak, 3), "exact_equals_brute_force": same,
    }  # fmt: skip
    none = np.zeros((1, 0), np.float32)
    started = time.perf_counter()
    exact_search(store, queries[:1], none, TOP)
    told["exact_one_query_seconds"] = round(time.perf_counter() - started, 3)
    if not given.skip_index:
        started = time.perf_counter()
        record = read_record(store) or synchronise(store)
        told["ann_build_seconds"] = round(time.perf_counter() - started, 1)
        search = ApproximateSearch.open(store, record)
        search.search(queries[:20], np.zeros((20, 0), np.float32), TOP)  # warm
        started = time.perf_counter()
        near = search.search(queries, np.zeros((len(queries), 0), np.float32), TOP).rows
        per_query = (time.perf_counter() - started) / len(queries)
        recall = np.mean([len(set(a) & set(b)) / TOP for a, b in zip(near.tolist(), rows.tolist(), strict=True)])
        told |= {
            "ann_recall_at_10": round(float(recall), 4), "ann_probes": record.probes,
            "ann_query_ms": round(1000 * per_query, 2),
            "ann_speedup": round(told["exact_one_query_seconds"] / per_query, 1),
            "ann_speedup_against_batched_exact": round(seconds / given.queries / per_query, 2),
        }  # fmt: skip
    write_text(bench / "search.json", json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
