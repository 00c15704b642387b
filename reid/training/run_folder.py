"""A run folder says what made it: the frozen configuration, the versions, the machine, the code."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from reid.config import config_differences
from shared.errors import ConfigError
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


def open_run(folder: Path, config: dict[str, Any]) -> Path:
    """Create a run folder, or continue in one that was made with the same configuration.

    Writes `config.yaml` and `versions.json` once. Raises ConfigError when the folder holds a run of another
    configuration (naming the keys that differ), DgreidError when it cannot be written.
    """
    make_folder(folder)
    frozen = folder / "config.yaml"
    if frozen.is_file():
        before = yaml.safe_load(frozen.read_text(encoding="utf-8")) or {}
        if differing := sorted(config_differences(before, json.loads(json.dumps(config)))):
            raise ConfigError(
                f"this run was started with another configuration ({', '.join(differing)} differ)",
                path=folder,
                fix="repeat the first command to continue it, delete the folder, or name another with RUN=<name>",
            )
        return folder
    write_text(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")
    write_text(frozen, yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False))
    return folder


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
