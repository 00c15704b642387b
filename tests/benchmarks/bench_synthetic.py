"""Pictures per second of the pedestrian generator, JPEG files included.

    python tests/benchmarks/bench_synthetic.py [workers] [identities]

Writes RUNS_ROOT/bench/synthetic.json: images_per_s, workers, images.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from pipelines.synthetic import generate_dataset
from shared.files import write_text
from shared.workspace import Workspace


def main() -> None:
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count() or 1
    identities = int(sys.argv[2]) if len(sys.argv) > 2 else 150
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()  # start of the processes included: it is what a user waits for
        folder = generate_dataset(
            Path(place),
            "campus",
            train_identities=identities,
            test_identities=0,
            cameras=4,
            images_per_camera=4,
            seed=0,
            workers=workers,
        )
        elapsed = time.perf_counter() - started
        images = sum(1 for _ in folder.rglob("*.jpg"))
    figures = {"images_per_s": round(images / elapsed, 1), "workers": workers, "images": images}
    write_text(Workspace.from_environment().runs_root / "bench" / "synthetic.json", json.dumps(figures) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
