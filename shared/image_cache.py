"""The files of packed images (reid.data.packing) under RUNS_ROOT/cache/images: named, listed and deleted."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.workspace import Workspace


@dataclass(frozen=True)
class PackFile:
    """One file. used: when a job last opened it, in seconds since 1970."""

    path: Path
    size_bytes: int
    used: float

    @property
    def dataset(self) -> str:
        return self.path.name.rsplit("-", 3)[0]


def pack_name(dataset: str, count: int, size: tuple[int, int], mode: str, key: str) -> str:
    return f"{dataset}-{count}x{size[0]}x{size[1]}-{mode}-{key}.npy"


def pack_files(workspace: Workspace) -> list[PackFile]:
    """All files, the longest unused first."""
    found = [(path, path.stat()) for path in workspace.image_cache.glob("*.npy")]
    packs = [PackFile(path, status.st_size, status.st_mtime) for path, status in found]
    return sorted(packs, key=lambda pack: (pack.used, pack.path))


def remove(packs: Sequence[PackFile]) -> int:
    """Delete files; returns how many bytes that freed. A job that has one open goes on with it."""
    for pack in packs:
        pack.path.unlink(missing_ok=True)
    return sum(pack.size_bytes for pack in packs)


def age_days(pack: PackFile) -> float:
    """Since a job last opened it."""
    return max(0.0, time.time() - pack.used) / 86_400


def size_told(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:,.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:,.1f} MiB"
