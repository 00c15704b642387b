"""A trained checkpoint made ready to ship: its own scores beside it, and a model card that says them."""

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

CARD = """# Pocket grounder

A Qwen2.5-VL (the architecture, not its weights) of {millions:.1f} million parameters, {megabytes:.1f} MB in float32,
that answers this project's `joint` and `per_part` questions with boxes of head, upper body and legs. transformers and
vLLM load it as they load its family. It knows no other question and no language.

**Use**: research and demo use. It exists so that the project labels real crops without a GPU and without a download.
For labels that matter, use a large model. It must not be used to identify or watch people.

**Data**: {generated:,} generated pedestrians (pipelines/synthetic, exact boxes) and {photos} street photos with human
part labels, derived from Clothing Co-Parsing (Yang, Luo, Lin, CVPR 2014; Apache-2.0). The photos whose names have the
176 smallest hashes were never trained on; the first 126 of them are scored below. No picture is part of this folder.

**Training**: `{command}`, seed {seed}: {steps:,} steps of {batch} pictures in {minutes:.0f} minutes on two CPU cores.
The weights are the averaged ones of the last step.

**Scores**: mean IoU (an answer without a box counts 0), the share of answers that parse, and of parts that are not
visible the share answered so. One greedy answer, float32, free text.

| pictures | question | count | head | upper body | legs | parsed | not visible |
|---|---|---|---|---|---|---|---|
{rows}

For scale, the same median box for every photo has 0.51 / 0.68 / 0.68. Aims: {wanted}. {state}

**Limits**: one person, upright, mostly whole. The photos are of standing people seen from the front in good light;
walking, seen from behind or the side, and poor cameras it knows from generated people and damaged photos only. Long
coats, dresses and bags blur the line between upper body and legs, as they do in the labels. The parts are those of its
training data: head with hair and hat, upper body down to just below the hip, legs with shoes. On crops of VIPeR, GRID,
i-LIDS and CAVIAR4REID, looked at by a hundred each, most boxes sit well; heads with long hair or in blur come out too
tall, dark people sometimes lose the head, luggage and people in front are taken for legs, and text
over the picture confuses it.
"""


def export(
    checkpoint: Path, folder: Path, real: RealScenes, generated: Scenes, training: dict[str, Any]
) -> dict[str, Any]:
    """Copy a checkpoint to `folder` with scores.json and README.md; the scores, asked in both modes.

    Args:
        generated: people that were not trained on.
        training: how it was trained, for the record.

    Raises DataError when there is no checkpoint yet.
    """
    if not (checkpoint / "model.safetensors").is_file():
        raise DataError("there is no checkpoint yet", path=checkpoint, fix="train to the end")
    local = LocalModel.load(Settings(model=str(checkpoint), family=FAMILY.name, device="cpu", dtype="float32"))
    scores: dict[str, Any] = {
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
    write_text(folder / "README.md", _card(scores, checkpoint / "model.safetensors"))
    return scores


def _card(scores: dict[str, Any], weights: Path) -> str:
    """The model card: what a reader must know before trusting a box of it."""
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
    state = f"Not reached: {', '.join(missed)}. It has not converged." if missed else "All of them are reached."
    return CARD.format(
        millions=parameters / 1e6,
        megabytes=weights.stat().st_size / 1e6,
        rows="\n".join(rows),
        wanted=wanted,
        state=state,
        **scores["training"],
    )
