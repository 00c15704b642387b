"""What a run folder records about its training: configuration, versions, the training images. Needs no torch."""

import json
import platform
import subprocess
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from reid.config import different_settings
from shared.errors import ConfigError, DataError
from shared.files import make_folder, write_text

PACKAGES = (
    "dgreid",
    "torch",
    "torchvision",
    "open_clip_torch",
    "lightning-fabric",
    "pyarrow",
    "duckdb",
    "vllm",
    "transformers",
)


# Any of them shows that something has trained and can be resumed or scored; recipes have one stage.
_TRAINED = ("latest.pt", "stage1/latest.pt", "stage1/prompts.safetensors", "stage2/latest.pt", "stage2/best.pt")


def trained_at(folder: Path) -> float | None:
    """When a run last wrote something that training continues from, in seconds since 1970; None: it has not trained."""
    times = [path.stat().st_mtime for name in _TRAINED if (path := folder / name).is_file()]
    return max(times, default=None)


Upgrade = Callable[[dict[str, Any]], dict[str, Any]]  # a stored configuration of an earlier version -> a present one


def check_run(folder: Path, config: dict[str, Any], *, upgraded: Upgrade = dict) -> None:
    """Raises ConfigError when a run of another configuration has trained in the folder, naming the keys that differ."""
    frozen = folder / "config.yaml"
    if trained_at(folder) is None or not frozen.is_file():
        return
    before = upgraded(yaml.safe_load(frozen.read_text(encoding="utf-8")) or {})
    if differing := different_settings(before, json.loads(json.dumps(config))):
        raise ConfigError(
            f"this run was started with another configuration ({', '.join(differing)} differ)",
            path=folder,
            fix="repeat the first command to continue it, delete the folder, or name another with --run <name>",
        )


def open_run(folder: Path, config: dict[str, Any], *, upgraded: Upgrade = dict) -> None:
    """Create a run folder, or continue in one that was made with the same configuration.

    Writes `config.yaml` and `versions.json`, again if nothing has trained in the folder yet. Raises as `check_run`, and
    DgreidError when the folder cannot be written.
    """
    check_run(folder, config, upgraded=upgraded)
    if trained_at(folder) is not None and (folder / "config.yaml").is_file():
        return
    make_folder(folder)
    write_text(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")
    write_text(folder / "config.yaml", yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False))


def write_image_ids(folder: Path, image_ids: Iterable[str]) -> None:
    """Record which images a run learns from, as image_ids.txt: one id a line, sorted."""
    write_text(folder / "image_ids.txt", "".join(f"{one}\n" for one in sorted(set(image_ids))))


def read_image_ids(folder: Path) -> frozenset[str] | None:
    """The images a run learned from; None for a run from before they were recorded."""
    path = folder / "image_ids.txt"
    return frozenset(path.read_text(encoding="utf-8").split()) if path.is_file() else None


def write_training_images(folder: Path, datasets: Iterable[str], paths: Iterable[str]) -> None:
    """Record which files a run is trained on, as training_images.jsonl: one [data set, path] a line.

    Not the same as the ids: a set may hold an image twice, and a run learns from held-out people when it must stop.
    """
    rows = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in zip(datasets, paths, strict=True))
    write_text(folder / "training_images.jsonl", "".join(rows))


def read_training_images(folder: Path) -> frozenset[tuple[str, str]] | None:
    """(data set, path) of every training image; None for a run from before they were recorded.

    Raises DataError for a damaged file.
    """
    path = folder / "training_images.jsonl"
    if not path.is_file():
        return None
    try:
        pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return frozenset((str(dataset), str(name)) for dataset, name in pairs)
    except (OSError, ValueError, TypeError) as err:
        raise DataError("not a list of training images", path=path, fix="train again, or delete the file") from err


def versions() -> dict[str, Any]:
    """Package versions, Python, machine and code revision of this process."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": installed,
        "git": _git_revision(),
    }


def _git_revision() -> str | None:
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
