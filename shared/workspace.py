"""Where things lie: one place that turns names into paths.

DATA_ROOT (default data/)   the user's data sets, only ever read (the demo's generated ones are written there)
RUNS_ROOT (default runs/)   everything we make:
    manifests/<dataset>.parquet
    labels/<run>/shards/<dataset>/<split>/part-*.parquet    see shared/labels.py
    train/<name>/           one training run: config, checkpoints, scores, report
    bench/
CACHE_ROOT (default runs/cache)
    images/                 images decoded once, see reid/data/packing.py; may be deleted at any time

DATA_ROOT and RUNS_ROOT may be in an object store (s3://bucket/prefix, gs://, az://, hf://). Manifests and labels are
then read and written there; training runs are worked on below CACHE_ROOT (then by default the user's cache folder), see
shared/mirror.py, and logs and benchmarks stay there.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from shared.mirror import fetch, mirrored_at, store
from shared.object_storage import remote, root_path


@dataclass(frozen=True)
class Workspace:
    data_root: Path
    runs_root: Path
    cache_root: Path | None = None  # None: the default

    @classmethod
    def from_environment(cls) -> "Workspace":
        """Raises ConfigError or StorageError for a root in an object store that cannot be used."""
        cache = os.environ.get("CACHE_ROOT")
        return cls(
            root_path(os.environ.get("DATA_ROOT") or "data", remember=True),
            root_path(os.environ.get("RUNS_ROOT") or "runs"),
            Path(cache) if cache else None,
        )

    @property
    def manifests(self) -> Path:
        return self.runs_root / "manifests"

    @property
    def labels(self) -> Path:
        return self.runs_root / "labels"

    @property
    def cache(self) -> Path:
        if self.cache_root or not remote(self.runs_root):
            return self.cache_root or self.runs_root / "cache"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgreid"

    @property
    def on_disk(self) -> Path:
        """`runs_root`, or what stands for it on this machine; for what must be in a file system."""
        place = remote(self.runs_root)
        return mirrored_at(place, self.cache) if place else self.runs_root

    @property
    def training_runs(self) -> Path:
        return self.on_disk / "train"

    def training_run(self, name: str) -> Path:
        """The folder of a run, whether or not it is there; from an object store it is brought up to date."""
        folder = self.training_runs / name
        if remote(self.runs_root):
            fetch(folder)
        return folder

    def stored_runs(self) -> list[Path]:
        """Where the training runs are kept: the folders of those that have a configuration."""
        return [path.parent for path in (self.runs_root / "train").glob("*/config.yaml")]

    def store_run(self, folder: Path) -> None:
        """Put the files of a run that are not in the object store yet, if it is kept in one."""
        if remote(self.runs_root):
            store(folder)

    @property
    def image_cache(self) -> Path:
        return self.cache / "images"

    def manifest(self, dataset: str) -> Path:
        return self.manifests / f"{dataset}.parquet"
