"""Checkpoints: ours, and those of the method's reference implementation (see reid.model.reference_state)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reid.model.reference_state import from_reference, to_reference
from reid.model.tensor_files import load_plain
from shared.errors import DgreidError
from shared.files import atomic_path

__all__ = ["FORMAT", "from_reference", "load_checkpoint", "save_checkpoint", "to_reference"]

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
