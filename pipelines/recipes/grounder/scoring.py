"""How well a grounder boxes scenes whose truth is known, asked exactly as the engine `local` asks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from labeler.engines.answers import outcomes
from labeler.engines.local_transformers_model import LocalModel, LocalQuestion
from labeler.grounding.coordinates import prepare
from labeler.grounding.prompts import PromptMode, Prompts
from labeler.grounding.retry import Attempt
from labeler.grounding.vocabulary import SHARED
from pipelines.recipes.grounder.architecture import FAMILY
from pipelines.recipes.grounder.scenes import Boxes, Scenes
from shared.geometry import Box, iou
from shared.schemas import PARTS, LabelStatus

BATCH = 16
ANSWERED = {LabelStatus.OK, LabelStatus.ABSENT}


@dataclass(frozen=True)
class Scores:
    """How answers compare with the truth.

    Attributes:
        iou: mean by part where truth has a box; an answer without one counts 0.
        absent: share of the parts without a true box that are answered as not visible; None when all have one.
        parsed: share of the answers that could be read.
    """

    iou: dict[str, float]
    absent: float | None
    parsed: float
    images: int

    def as_json(self) -> dict[str, float | None]:
        figures = {**self.iou, "absent": self.absent, "parsed": self.parsed}
        return {name: value if value is None else round(value, 4) for name, value in figures.items()} | {
            "images": self.images
        }


def score(local: LocalModel, scenes: Scenes, mode: PromptMode = "joint") -> Scores:
    """Score a loaded model on scenes with one greedy answer to each question."""
    found = [
        answer
        for start in range(0, len(scenes), BATCH)
        for answer in boxes_of(local, [Image.fromarray(one) for one in scenes.pixels[start : start + BATCH]], mode)
    ]
    return compare(found, scenes.boxes)


def boxes_of(
    local: LocalModel, images: Sequence[Image.Image], mode: PromptMode
) -> list[dict[str, tuple[LabelStatus, Box | None]]]:
    """Status and box, in pixels of the image, of every part of every image."""
    prompts = Prompts.choose(FAMILY, mode, SHARED)
    prepared = [prepare(image, FAMILY) for image in images]
    asked = [
        (index, question)
        for index, (_, sent) in enumerate(prepared)
        for question in prompts.questions(PARTS, sent, with_schema=False)
    ]
    replies = local.answer(
        [LocalQuestion(prepared[index][0], one.text, one.max_tokens, Attempt()) for index, one in asked]
    )
    found: list[dict[str, tuple[LabelStatus, Box | None]]] = [{} for _ in images]
    for (index, question), reply in zip(asked, replies, strict=True):
        answers = outcomes(question, reply.text, reply.finish_reason, None, prepared[index][1], SHARED)
        found[index] |= {part: (answer.status, answer.image_box) for part, answer in answers.items()}
    return found


def compare(found: Sequence[dict[str, tuple[LabelStatus, Box | None]]], truth: Boxes) -> Scores:
    """Scores of answers against boxes [N, parts, 4], NaN where a part is not visible."""
    overlaps: dict[str, list[float]] = {part: [] for part in PARTS}
    absent = []
    for answers, boxes in zip(found, truth, strict=True):
        for part, true in zip(PARTS, boxes, strict=True):
            status, box = answers[part]
            if np.isfinite(true).all():
                overlaps[part].append(iou(box, Box(*map(float, true))) if box else 0.0)
            else:
                absent.append(status == LabelStatus.ABSENT)
    parsed = [status in ANSWERED for answers in found for status, _ in answers.values()]
    return Scores(
        {part: float(np.mean(values)) for part, values in overlaps.items()},
        float(np.mean(absent)) if absent else None,
        float(np.mean(parsed)),
        len(found),
    )
