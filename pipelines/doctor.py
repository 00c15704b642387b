"""`doctor`: what works on this machine, what does not, and what to do about it."""

import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata

from pipelines.terminal import print_table
from shared.datasets import known_datasets, locate
from shared.errors import DgreidError, UsageError
from shared.files import make_folder, write_text
from shared.labels import label_runs, label_shards
from shared.object_storage import remote
from shared.workspace import Workspace

PACKAGES = ("torch", "torchvision", "open_clip_torch", "fastapi", "httpx", "pyarrow", "duckdb")
OPTIONAL = ("vllm", "transformers")


def doctor() -> None:
    """Check Python, packages, device, disk, data sets and labels."""
    workspace = Workspace.from_environment()
    rows, failed = [], []
    for name, check in CHECKS.items():
        try:
            rows.append((name, "ok", check(workspace)))
        except DgreidError as err:
            failed.append(name)
            rows.append((name, "no", f"{err.what}; fix: {err.fix}"))
    print_table(("check", "", "found"), rows)
    if failed:
        raise DgreidError(f"failed checks: {', '.join(failed)}", fix="see the table above")


def _python(_: Workspace) -> str:
    return f"{sys.version.split()[0]} on {os.cpu_count()} cores"


def _packages(_: Workspace) -> str:
    versions = {name: _version(name) for name in (*PACKAGES, *OPTIONAL)}
    if missing := [name for name in PACKAGES if not versions[name]]:
        raise DgreidError(f"not installed: {', '.join(missing)}", fix="make install")
    found = [f"{name} {version}" for name, version in versions.items() if version]
    absent = [f"{name} not installed (optional)" for name in OPTIONAL if not versions[name]]
    return ", ".join(found + absent)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device(_: Workspace) -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"no GPU: training runs on the CPU with {torch.get_num_threads()} threads"


def _runs_root(workspace: Workspace) -> str:
    probe = workspace.runs_root / ".doctor"
    write_text(probe, "ok")
    probe.unlink()
    make_folder(workspace.on_disk)
    kept = (
        f"{workspace.runs_root}, worked on in {workspace.on_disk}" if remote(workspace.runs_root) else str(probe.parent)
    )
    return f"{kept}, {shutil.disk_usage(workspace.on_disk).free / 2**30:.0f} GiB free"


def _data_root(workspace: Workspace) -> str:
    if not workspace.data_root.is_dir():
        return f"{workspace.data_root} does not exist yet; DATA_ROOT=<folder with your data sets>"
    found = []
    for name in known_datasets(workspace.data_root):
        try:
            locate(name, workspace.data_root)
        except UsageError:
            continue
        found.append(name)
    return f"{workspace.data_root}: {', '.join(found) or 'no known data set'}"


def _labels(workspace: Workspace) -> str:
    names = [
        f"{run}: {len(shards)} shards"
        for run in label_runs(workspace.labels)
        if (shards := label_shards(workspace.labels, label_run=run))
    ]
    return ", ".join(names) or "none yet: dgreid label <name>"


CHECKS: dict[str, Callable[[Workspace], str]] = {
    "python": _python,
    "packages": _packages,
    "device": _device,
    "RUNS_ROOT": _runs_root,
    "DATA_ROOT": _data_root,
    "labels": _labels,
}
