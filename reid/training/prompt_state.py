"""What stage 1 resumes from: latest.pt, which names the files that hold the prompts and Adam's moments in parts."""

import time
from collections.abc import Collection
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from reid.model.checkpoint import load_checkpoint, load_tensors, save_checkpoint, save_tensors
from reid.training.snapshots import require_same
from shared.errors import DgreidError
from shared.files import remove_file

SMALL_BYTES = 64 * 2**20  # a state of this size is written after every epoch
WRITING_SHARE = 0.05  # of the time that writing larger ones may take
PART_BYTES = 64 * 2**20  # of a file: what a write needs beside the state itself
MOMENTS = ("exp_avg", "exp_avg_sq")
_PARTS = "latest_*.safetensors"
_ANEW = "delete the latest.pt beside it: stage 1 then begins from its first epoch"


class PromptState:
    """Prompts [identities, ...] and the moments of their Adam, on disk in blocks of identities.

    The parts of an epoch are files of their own, each written whole. latest.pt, written after them, names the parts
    that belong together, and only then those of the epoch before are removed: killed at any moment it is a whole epoch.

    Args:
        folder: of the stage.
        optimizer: Adam over `prompts` alone.
        marks: what the training belongs to; a state with other marks is refused.
    """

    def __init__(
        self,
        folder: Path,
        prompts: nn.Parameter,
        optimizer: torch.optim.Optimizer,
        fabric: Fabric,
        marks: dict[str, str],
    ) -> None:
        self._folder, self._prompts, self._optimizer, self._marks = folder, prompts, optimizer, marks
        self._precision = fabric.strategy.precision

    @property
    def size_bytes(self) -> int:
        return (1 + len(MOMENTS)) * self._prompts.nbytes

    def save(self, history: list[dict[str, float]]) -> None:
        """Write the state after the last epoch of `history`. Raises DgreidError when it cannot be written."""
        epoch, state = int(history[-1]["epoch"]), self._optimizer.state[self._prompts]
        moments = {name: state[name] for name in MOMENTS if name in state}  # none where all steps were skipped
        whole = {"prompts": self._prompts, **moments}
        rows = max(1, PART_BYTES * len(self._prompts) // self.size_bytes)
        parts = []
        for number, start in enumerate(range(0, len(self._prompts), rows)):
            parts.append(f"latest_{epoch:04d}_{number:05d}.safetensors")
            part = {name: tensor[start : start + rows] for name, tensor in whole.items()}
            save_tensors(self._folder / parts[-1], part, {"epoch": str(epoch)})
        meta = {**self._marks, "history": history, "parts": parts}
        about = {"step": state.get("step"), "precision": self._precision.state_dict()}
        save_checkpoint(self._folder / "latest.pt", about, meta)
        _remove_parts(self._folder, but=parts)

    def restore(self) -> list[dict[str, float]]:
        """Resume from the folder, if it holds a state; returns the rows of its epochs.

        Raises DgreidError when it belongs to another training or is damaged.
        """
        path = self._folder / "latest.pt"
        if not path.is_file():
            return []
        state, meta = load_checkpoint(path)
        require_same(meta, self._marks, path)
        if "prompts" in state:  # of an earlier version: in one file
            with torch.no_grad():
                self._prompts.copy_(state["prompts"]["contexts"])
            self._optimizer.load_state_dict(state["optimizer"])
        else:
            moments = MOMENTS if state["step"] is not None else ()
            self._read_parts(meta["parts"], str(int(meta["history"][-1]["epoch"])), moments)
            if moments:
                fused = self._optimizer.param_groups[0]["fused"]  # it counts on the device
                step = state["step"].to(self._prompts.device) if fused else state["step"]
                self._optimizer.state[self._prompts]["step"] = step
            self._precision.load_state_dict(state["precision"])
        history: list[dict[str, float]] = meta["history"]
        return history

    def _read_parts(self, parts: list[str], epoch: str, names: Collection[str]) -> None:
        prompts = self._prompts.detach()
        moments = {name: torch.zeros_like(prompts) for name in names}
        start = 0
        for name in parts:
            path = self._folder / Path(name).name
            try:
                part, about = load_tensors(path)
            except DgreidError as err:
                raise DgreidError(err.what, path=path, fix=_ANEW) from err
            start = self._put(part, {"prompts": prompts, **moments}, start, fits=about.get("epoch") == epoch, path=path)
        if start != len(prompts):
            raise DgreidError(f"parts of {start:,} of {len(prompts):,} identities", path=self._folder, fix=_ANEW)
        if moments:
            self._optimizer.state[self._prompts].update(moments)

    @staticmethod
    def _put(part: dict[str, Tensor], whole: dict[str, Tensor], start: int, *, fits: bool, path: Path) -> int:
        """Copy a part to the rows from `start` on; returns the row after it."""
        rows = len(part.get("prompts", ()))
        for name, tensor in whole.items():
            place = tensor[start : start + rows]
            if not fits or name not in part or part[name].shape != place.shape:
                raise DgreidError("a part of another state", path=path, fix=_ANEW)
            place.copy_(part[name])
        return start + rows


def remove_prompt_state(folder: Path) -> None:
    """Delete the state, if there is one; latest.pt first, so that none is left that names parts which are gone."""
    remove_file(folder / "latest.pt")
    _remove_parts(folder, but=())


def _remove_parts(folder: Path, but: Collection[str]) -> None:
    for path in folder.glob(_PARTS):
        if path.name not in but:
            remove_file(path)


class SparingWrites:
    """When to write a state: a small one every time, a large one so that writing takes at most a share of the time.

    Use it as a context manager around a write. size_bytes: of the state.
    """

    def __init__(self, size_bytes: int) -> None:
        self._small = size_bytes <= SMALL_BYTES
        self._took, self._ended, self._began = 0.0, time.monotonic(), 0.0

    @property
    def leaves_out(self) -> bool:
        """Whether there are epochs after which nothing is written."""
        return not self._small

    def is_due(self, last: bool) -> bool:
        """last: there is no later occasion."""
        return self._small or last or time.monotonic() - self._ended >= self._took / WRITING_SHARE

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()
        self._took = self._ended - self._began
