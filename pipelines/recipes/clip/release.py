"""The shipped files of the pocket CLIP: weights and configuration as open_clip reads them, scores.json, model card."""

import json
from pathlib import Path
from typing import Any

import torch

from pipelines.recipes.clip.people import People, concatenate, generated_people
from pipelines.recipes.clip.scoring import score_people
from pipelines.recipes.clip.training import DOMAINS, ClipTraining, load_people
from reid.config import ModelConfig
from reid.data.transforms import MEAN, STD
from reid.model.backbone import load_clip
from reid.model.checkpoint import file_sha256, save_tensors
from reid.report.tables import markdown_table
from shared.datasets import resolve_name
from shared.files import write_text
from shared.workspace import Workspace

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"  # open_clip's own names for a local folder
UNSEEN_DOMAIN, UNSEEN_PEOPLE, UNSEEN_VIEWS = "night", 300, 2

_CARD = """---
library_name: open_clip
pretrained_on: [{pretrained_on}]
---
# Pocket CLIP

A CLIP model with {parameters:.1f} million parameters ({megabytes:.1f} MB in half precision), trained on images of
people and captions of their clothes only. With it the project trains and runs without a GPU and without a download.
For research and demonstration; not for surveillance, and not for identifying people.

- **Architecture**: open_clip; vision transformer with {layers} layers of width {width}, 16-pixel patches, input
  128 x 64 (height x width, mean and standard deviation 0.5); text transformer with CLIP's byte-pair vocabulary. Defined
  in `open_clip_config.json`.
- **Use**: `open_clip.create_model("local-dir:reid/pocket")`, or `dgreid train --preset pocket`.
- **Training data**: {data}
- **`pretrained_on`** (above, and in `scores.json`): the data sets whose images were trained on. Scores on them with
  these weights are not cross-domain scores.
- **Captions**: generated from PETA's attribute words with varied wording, at least two facts each. No caption of a
  batch is true of another image of the batch.
- **Reproduce**: `dgreid train-clip{arguments}`; contrastive loss of open_clip, {batches} batches of
  {batch}, seed {seed}, torch {torch}. SHA-256 of the weights: `{sha256}`.

## Scores

On people that were not trained on: one identity in five is held out, chosen by a hash of its name. Percent; the chance
level is in brackets.

{retrieval}

{colours}

*Retrieval*: each query states all attribute words of a person; an image is relevant when all of them are true of its
person. Chance level: a random ranking. *Colour*: zero-shot choice among 11 colour words, for people whose garment has
exactly one colour; each person counts once. Chance level: a uniform guess; "majority" always predicts the most frequent
colour.

## Limits

- Trained on {seen}.
  It knows colours, types of garment, hair, shoes and bags as far as PETA's words describe them, and nothing else.
- Rare colours (orange, pink, yellow) are rare in the real images too; `scores.json` lists each colour.
- PETA's words were assigned by eye; gender and age are the annotators' guesses.
- The scores on real people are from few identities, recorded by the cameras of the training images; other cameras are
  harder.
"""


def write_release(
    clip: Any, config: ClipTraining, model: ModelConfig, workspace: Workspace, folder: Path
) -> dict[str, Any]:
    """Write `folder`/release: half-precision weights, open_clip's config, scores.json, README.md; returns the scores.

    The written weights are read back and scored. `open_clip.create_model("local-dir:<folder>/release")` loads them.

    Raises DgreidError when the folder cannot be written, DataError when a source is missing.
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
        "pretrained_on": pretrained_on(config, workspace),
        "training": {**config.model_dump(mode="json"), "torch": torch.__version__},
        "held_out": {name: score_people(shipped, them) for name, them in held_out(config, workspace, folder).items()},
    }
    write_text(out / "scores.json", json.dumps(scores, indent=2) + "\n")
    write_text(out / "README.md", model_card(scores, (out / WEIGHTS).stat().st_size, model.architecture or {}))
    return scores


def pretrained_on(config: ClipTraining, workspace: Workspace) -> list[str]:
    """Canonical names of the data sets whose images are trained on. Raises ConfigError for an unknown name."""
    return [resolve_name(name, workspace.data_root) for name in config.sources]


def held_out(config: ClipTraining, workspace: Workspace, folder: Path) -> dict[str, People]:
    """People that were not trained on: the held-out ones of the domains and sources, and those of an unseen domain."""
    people = {name: them.split()[1] for name, them in load_people(config, workspace, folder).items()}
    groups = {"generated people, places of the training": concatenate([people[f"synth_{name}"] for name in DOMAINS])}
    groups["generated people, another place"] = generated_people(
        UNSEEN_DOMAIN, UNSEEN_PEOPLE, UNSEEN_VIEWS, folder / "drawn"
    )
    return groups | ({"real people": people["real"]} if "real" in people else {})


def model_card(scores: dict[str, Any], size_bytes: int, architecture: dict[str, Any]) -> str:
    """The text of README.md.

    Args:
        scores: the content of scores.json.
        size_bytes: of the weights.
        architecture: open_clip's model_cfg.
    """
    training, held_out, real = scores["training"], scores["held_out"], scores["pretrained_on"]
    generated = f"{len(DOMAINS) * training['identities']:,} generated people of three domains"
    return _CARD.format(
        pretrained_on=", ".join(real),
        parameters=size_bytes / 2e6,
        megabytes=size_bytes / 1e6,
        layers=architecture["vision_cfg"]["layers"],
        width=architecture["vision_cfg"]["width"],
        data=f"{generated} ({training['views']} images each)"
        + (f", and the training identities of {', '.join(real)} with PETA's attribute words" if real else "")
        + ", without the held-out ones. No image of any other data set.",
        arguments="" if real else " --sources none",
        batches=f"{training['rounds'] * training['steps']:,}",
        batch=training["batch"],
        seed=training["seed"],
        torch=training["torch"],
        sha256=scores["weights_sha256"],
        seen=f"generated people and the people of {', '.join(real)}" if real else "generated people only",
        retrieval=_retrieval_table(held_out),
        colours=_colour_table(held_out),
    )


def _retrieval_table(held_out: dict[str, Any]) -> str:
    columns = {"recall_1": "recall at 1", "recall_5": "at 5", "recall_10": "at 10", "mean_ap": "mAP"}
    rows = []
    for name, found in held_out.items():
        scores = found["retrieval"]
        cells = [f"{scores[key]:.1f} ({scores[f'{key}_by_chance']:.1f})" for key in columns]
        rows.append((f"{name}: {found['people']}", f"{found['pictures']:,}", *cells))
    return markdown_table(("people", "images", *columns.values()), rows)


def _colour_table(held_out: dict[str, Any]) -> str:
    rows = []
    for name, found in held_out.items():
        for garment in ("upper", "lower"):
            scores = found[f"{garment}_colour"]
            accuracies = [f"{scores[key]:.1f} ({scores['by_chance']:.1f})" for key in ("accuracy", "balanced_accuracy")]
            majority = f"{scores['always_the_commonest']:.1f}"
            rows.append((f"{garment} garment, {name}", str(scores["people"]), *accuracies, majority))
    return markdown_table(("colour of", "people", "accuracy", "mean over colours", "majority"), rows)
