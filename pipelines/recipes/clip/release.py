"""The shipped files of the pocket CLIP: weights and configuration as open_clip reads them, scores, model card."""

import json
from pathlib import Path
from typing import Any

import torch

from pipelines.recipes.clip.card import card
from pipelines.recipes.clip.people import People, generated_people, together
from pipelines.recipes.clip.scoring import score_people
from pipelines.recipes.clip.training import DOMAINS, ClipTraining, everybody
from reid.config import ModelConfig
from reid.data.transforms import MEAN, STD
from reid.model.backbone import load_clip
from reid.model.checkpoint import file_sha256, save_tensors
from shared.files import write_text
from shared.workspace import Workspace

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"  # open_clip's own names for a local folder
UNSEEN_DOMAIN, UNSEEN_PEOPLE, UNSEEN_VIEWS = "night", 300, 2


def write_release(
    clip: Any, config: ClipTraining, model: ModelConfig, workspace: Workspace, folder: Path
) -> dict[str, Any]:
    """Write `folder`/release: half-precision weights, open_clip's config, scores.json, README.md; returns the scores.

    The scores are those of the written file, read again. `open_clip.create_model("local-dir:<folder>/release")` opens
    it.

    Raises DgreidError when the place cannot be written, DataError when a source is gone.
    """
    out = folder / "release"
    save_tensors(out / WEIGHTS, {name: tensor.half() for name, tensor in clip.state_dict().items()}, {"format": "pt"})
    preprocessing = {"mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    about = {"model_cfg": model.architecture, "preprocess_cfg": preprocessing}
    write_text(out / CONFIG, json.dumps(about, indent=2) + "\n")
    sha256 = file_sha256(out / WEIGHTS)
    written = ModelConfig(architecture=model.architecture, weights_file=out / WEIGHTS, weights_sha256=sha256)
    shipped = load_clip(written).eval()
    scores = {
        "weights_sha256": sha256,
        "training": {**config.model_dump(mode="json"), "torch": torch.__version__},
        "held_out": {name: score_people(shipped, them) for name, them in held_out(config, workspace, folder).items()},
    }
    write_text(out / "scores.json", json.dumps(scores, indent=2) + "\n")
    write_text(out / "README.md", card(scores, (out / WEIGHTS).stat().st_size, model.architecture or {}))
    return scores


def held_out(config: ClipTraining, workspace: Workspace, folder: Path) -> dict[str, People]:
    """Nobody of these was trained on: the held-out people of the places and data sets, and a place never shown."""
    people = {name: them.split()[1] for name, them in everybody(config, workspace, folder).items()}
    groups = {"generated people, places of the training": together([people[f"synth_{name}"] for name in DOMAINS])}
    groups["generated people, another place"] = generated_people(
        UNSEEN_DOMAIN, UNSEEN_PEOPLE, UNSEEN_VIEWS, folder / "drawn"
    )
    return groups | ({"real people": people["real"]} if "real" in people else {})
