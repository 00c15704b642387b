"""Files of tensors: our checkpoints, safetensors and state dicts. Written whole or not at all; reading runs no code."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from shared.errors import DgreidError
from shared.files import atomic_path

FORMAT = "dgreid.checkpoint.1"


def save_checkpoint(path: Path, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        state: nested dicts and lists of tensors, numbers, strings, booleans and None, e.g. state_dicts of model,
            optimiser and generators (keep a NumPy or Python generator's state as tensors or lists).
        meta: JSON-able description: configuration, epoch, number of identities.
    Raises:
        TypeError: something in `state` or `meta` that reading would refuse.
        DgreidError: the place cannot be written.
    """
    _refuse_code(state, "state")
    content = {"format": FORMAT, "meta": json.dumps(dict(meta)), "state": dict(state)}
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read state and meta, tensors on the CPU. Raises DgreidError for a missing, damaged, foreign or hostile file."""
    content = load_plain(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DgreidError("not a checkpoint of dgreid", path=path, fix="name the latest.pt of a training run")
    return content["state"], json.loads(content["meta"])


def _refuse_code(value: Any, place: str) -> None:
    """Only what torch.load accepts with weights_only may be saved; better to fail before the run than after it."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _refuse_code(entry, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _refuse_code(entry, f"{place}.{index}")
    elif not isinstance(value, Tensor | int | float | str | bytes | None):
        raise TypeError(f"{place} is a {type(value).__name__}; a checkpoint holds tensors, numbers and text only")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors as safetensors, atomically, with text metadata. Raises DgreidError when it cannot."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(plain, temporary, metadata=dict(metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors on the CPU and its metadata. Raises DgreidError for a missing or damaged one."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as err:
        raise _unreadable(path, err) from err


def read_tensors(path: Path) -> dict[str, Any]:
    """A state_dict from safetensors or a torch file, bare or under "state_dict", with or without "module." names.

    Raises DgreidError for a missing, damaged or hostile file, or one that holds something else.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    content = load_plain(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DgreidError("the file holds no table of tensors", path=path, fix="name a file with a state_dict")
    return {name.removeprefix("module."): value for name, value in content.items()}


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes. Raises DgreidError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise _unreadable(path, err) from err


def load_plain(path: Path) -> Any:
    """Plain data from torch.save, tensors on the CPU. Raises DgreidError for a missing, damaged or hostile file."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.save writes check sums, torch.load does not look at them
            if (entry := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the check sum of {entry} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # damaged or hostile bytes raise many types; all mean the same to us
        raise _unreadable(path, err) from err


def _unreadable(path: Path, err: Exception) -> DgreidError:
    reason = err.strerror if isinstance(err, OSError) and err.strerror else " ".join(str(err).split())[:200]
    return DgreidError(
        f"cannot read the file: {reason or type(err).__name__}",
        path=path,
        fix="delete it if it is damaged, and run the command that writes it again",
    )
