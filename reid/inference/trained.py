"""The model of a training run, read from its run folder alone."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from reid.config import RunConfig, read_config
from reid.model.checkpoint import load_checkpoint
from reid.model.muva import Muva, build_model
from shared.errors import DataError, DgreidError

LATEST, BEST = "latest.pt", "best.pt"  # in stage2/ of a run folder


@dataclass(frozen=True)
class TrainedRun:
    """A run whose checkpoint has been read. epoch: 1-based, of the checkpoint."""

    config: RunConfig
    checkpoint: Path
    epoch: int
    num_identities: int
    state: Mapping[str, Any]

    def model(self) -> Muva:
        """The trained model on the CPU, in eval mode. Raises DgreidError when checkpoint and configuration differ."""
        model = build_model(self.config.model, self.num_identities, seed=self.config.seed, load_weights=False)
        try:
            model.load_state_dict(final_weights(self.state))
        except RuntimeError as err:
            raise DgreidError(
                f"the checkpoint does not fit the run's configuration: {' '.join(str(err).split())[:300]}",
                path=self.checkpoint,
                fix="restore config.yaml of the run, or train again",
            ) from err
        return model.eval()


def read_trained_run(run_folder: Path) -> TrainedRun:
    """Read the configuration and the checkpoint that a run is scored with; CLIP's weights file is not needed.

    Raises DataError when there is no such run or no checkpoint yet, ConfigError or DgreidError for a damaged file.
    """
    config = read_config(run_folder)
    checkpoint = selected_checkpoint(run_folder, config)
    if not checkpoint.is_file():
        raise DataError(
            "this run has no trained model yet", path=checkpoint, fix="run its dgreid train command to the end"
        )
    state, meta = load_checkpoint(checkpoint)
    return TrainedRun(config, checkpoint, int(meta["epoch"]), int(meta["num_identities"]), state)


def model_hash(model: Muva) -> str:
    """16 hex digits over everything that determines a model's features: weights of image encoder and neck, patch grid
    and gate. The same in a run folder and in an export of it; training state, text tower and classifier do not count.
    """
    encoder = model.image_encoder
    settings = [model.grid, encoder.mask_temperature, encoder.gate_threshold, encoder.soft_gate]
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in sorted({**encoder.state_dict(), **model.bnneck.state_dict(prefix="neck.")}.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def final_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights to score with, from a saved state: the averaged ones where there are any."""
    return {**state["model"], **state.get("averaged", {})}


def selected_checkpoint(run_folder: Path, config: RunConfig) -> Path:
    """The checkpoint that a run is scored with: the best epoch on held-out identities, or the last epoch."""
    return run_folder / "stage2" / (BEST if config.data.validation_share else LATEST)


def selection(config: RunConfig) -> str:
    """How that checkpoint was selected, for the protocol line."""
    if share := config.data.validation_share:
        return f"best epoch on {share:.0%} of the source identities, held out"
    return "last epoch, no model selection"
