"""Where things lie: one place that turns names into paths.

DATA_ROOT (default data/)   the user's data sets, only ever read (the demo's generated ones are written there)
RUNS_ROOT (default runs/)   everything we make:
    manifests/<dataset>.parquet
    labels/<run>/shards/<dataset>/<split>/part-*.parquet    see shared/labels.py
    train/<name>/           one training run: config, checkpoints, scores, report
    cache/images/           images decoded once, see reid/data/packing.py; may be deleted at any time
    bench/
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    data_root: Path
    runs_root: Path

    @classmethod
    def from_environment(cls) -> "Workspace":
        return cls(Path(os.environ.get("DATA_ROOT") or "data"), Path(os.environ.get("RUNS_ROOT") or "runs"))

    @property
    def manifests(self) -> Path:
        return self.runs_root / "manifests"

    @property
    def labels(self) -> Path:
        return self.runs_root / "labels"

    @property
    def training_runs(self) -> Path:
        return self.runs_root / "train"

    @property
    def image_cache(self) -> Path:
        return self.runs_root / "cache" / "images"

    def manifest(self, dataset: str) -> Path:
        return self.manifests / f"{dataset}.parquet"
