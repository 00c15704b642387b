"""The shipped files of the pocket grounder: checkpoint, scores.json, model card."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from labeler.engines.local_transformers_model import LocalModel
from labeler.grounding.prompts import PromptMode, Prompts
from labeler.grounding.vocabulary import SHARED
from labeler.settings import Settings
from pipelines.recipes.grounder.architecture import FAMILY
from pipelines.recipes.grounder.scenes import RealScenes, Scenes
from pipelines.recipes.grounder.scoring import score
from shared.errors import DataError
from shared.files import make_folder, write_text
from shared.schemas import PARTS

MODES: tuple[PromptMode, ...] = ("joint", "per_part")
TARGETS = {"held_out_photos": {"head": 0.71, "upper_body": 0.76, "legs": 0.77}, "generated": dict.fromkeys(PARTS, 0.80)}

PRETRAINED_ON: tuple[str, ...] = ()  # re-identification data sets whose images are trained on

CARD = """---
library_name: transformers
pretrained_on: [{pretrained_on}]
---
# Pocket grounder

A Qwen2.5-VL (the architecture, not its weights) with {millions:.1f} million parameters, {megabytes:.1f} MB in float32.
It answers this project's `joint` and `per_part` questions with boxes of head, upper body and legs. transformers and
vLLM load it like any model of its family. It answers no other question and understands no other text.

**Use**: research and demonstration. With it the project labels real crops without a GPU and without a download.
For research-quality labels, use a large model. It must not be used to identify or track people.

**Training data**: {generated:,} generated pedestrians (pipelines/synthetic, exact boxes) and {photos} street photos
with human part labels, derived from Clothing Co-Parsing (Yang, Luo, Lin, CVPR 2014; Apache-2.0). The photos whose names
have the 176 smallest hashes were not trained on; the first 126 of them are scored below. This folder contains no image.
`pretrained_on` (above, and in `scores.json`) lists the re-identification data sets whose images were trained on: none.

**Training**: `{command}`, seed {seed}: {steps:,} steps of {batch} images in {minutes:.0f} minutes on two CPU cores.
The weights are the moving average at the last step.

**Scores**: mean IoU (an answer without a box counts 0), the fraction of answers that parse, and, of the parts that are
not visible, the fraction answered as not visible. One greedy answer per question, float32, unconstrained decoding.

| images | question | count | head | upper body | legs | parsed | not visible |
|---|---|---|---|---|---|---|---|
{rows}

Baseline, the median box for every photo: 0.51 / 0.68 / 0.68. Targets: {wanted}. {state}

**Limits**: one person, upright, mostly complete. The photos are of standing people seen from the front in good light;
walking people, views from behind or the side, and poor cameras occur only as generated people and degraded photos. Long
coats, dresses and bags blur the boundary between upper body and legs, as they do in the labels. The parts are defined
as in the training data: head with hair and hat, upper body down to just below the hip, legs with shoes. Of 100 crops
each of VIPeR, GRID, i-LIDS and CAVIAR4REID inspected by eye, most boxes are good; boxes of heads with long hair or in
blur are too tall, dark people sometimes get no head box, luggage and people in front are boxed as legs, and text over
the image confuses it.
"""


def write_release(
    checkpoint: Path, folder: Path, real: RealScenes, generated: Scenes, training: dict[str, Any]
) -> dict[str, Any]:
    """Copy a checkpoint to `folder`, add scores.json and README.md; returns the scores, of both prompt modes.

    Args:
        generated: people that were not trained on.
        training: the record of the training, see `Trainer.record`, with `generated` and `command`.

    Raises DataError when there is no checkpoint.
    """
    if not (checkpoint / "model.safetensors").is_file():
        raise DataError("no checkpoint", path=checkpoint, fix="run the training to its end")
    local = LocalModel.load(Settings(model=str(checkpoint), family=FAMILY.name, device="cpu", dtype="float32"))
    scores: dict[str, Any] = {
        "pretrained_on": list(PRETRAINED_ON),
        "prompt_versions": {mode: Prompts.choose(FAMILY, mode, SHARED).version for mode in MODES},
        "held_out_photos": {mode: score(local, real.held_out, mode).as_json() for mode in MODES},
        "generated": {mode: score(local, generated, mode).as_json() for mode in MODES},
        "targets": TARGETS,
        "training": training,
    }
    make_folder(folder)
    for file in sorted(checkpoint.iterdir()):
        shutil.copyfile(file, folder / file.name)
    write_text(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    write_text(folder / "README.md", model_card(scores, checkpoint / "model.safetensors"))
    return scores


def model_card(scores: dict[str, Any], weights: Path) -> str:
    """The text of README.md. scores: the content of scores.json; weights: the safetensors file."""
    with safe_open(weights, "pt") as file:
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    rows = [
        f"| {data.replace('_', ' ')} | `{mode}` | {row['images']} | "
        + " | ".join(f"{row[part]:.3f}" for part in PARTS)
        + f" | {row['parsed']:.3f} | {'' if row['absent'] is None else format(row['absent'], '.2f')} |"
        for data in TARGETS
        for mode, row in scores[data].items()
    ]
    wanted = ", ".join(
        f"{data.replace('_', ' ')} " + " / ".join(f"{least:.2f}" for least in TARGETS[data].values())
        for data in TARGETS
    )
    missed = [
        f"{data.replace('_', ' ')} {part} ({scores[data]['joint'][part]:.3f})"
        for data in TARGETS
        for part, least in TARGETS[data].items()
        if scores[data]["joint"][part] < least
    ]
    state = f"Not reached: {', '.join(missed)}." if missed else "All are reached."
    return CARD.format(
        pretrained_on=", ".join(scores["pretrained_on"]),
        millions=parameters / 1e6,
        megabytes=weights.stat().st_size / 1e6,
        rows="\n".join(rows),
        wanted=wanted,
        state=state,
        **scores["training"],
    )
