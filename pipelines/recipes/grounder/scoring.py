"""Evaluation of a grounder on scenes with known boxes, with the questions and parsing of the engine `local`."""

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
    """Attributes:
    iou: mean IoU by part over the true boxes; an answer without a box counts 0.
    absent: fraction of the parts without a true box that are answered as not visible; None if there are none.
    parsed: fraction of the answers that could be parsed.
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
    """Score a loaded model on scenes, with one greedy answer per question."""
    found = [
        answer
        for start in range(0, len(scenes), BATCH)
        for answer in predict_boxes(local, [Image.fromarray(one) for one in scenes.pixels[start : start + BATCH]], mode)
    ]
    return score_boxes(found, scenes.boxes)


def predict_boxes(
    local: LocalModel, images: Sequence[Image.Image], mode: PromptMode
) -> list[dict[str, tuple[LabelStatus, Box | None]]]:
    """Status and box (in pixels of the image) of each part, for each image."""
    prompts = Prompts.choose(FAMILY, mode, SHARED)
    prepared = [prepare(image, FAMILY) for image in images]
    queries = [
        (index, question)
        for index, (_, sent) in enumerate(prepared)
        for question in prompts.questions(PARTS, sent, with_schema=False)
    ]
    replies = local.answer(
        [LocalQuestion(prepared[index][0], one.text, one.max_tokens, Attempt()) for index, one in queries]
    )
    found: list[dict[str, tuple[LabelStatus, Box | None]]] = [{} for _ in images]
    for (index, question), reply in zip(queries, replies, strict=True):
        answers = outcomes(question, reply.text, reply.finish_reason, None, prepared[index][1], SHARED)
        found[index] |= {part: (answer.status, answer.image_box) for part, answer in answers.items()}
    return found


def score_boxes(found: Sequence[dict[str, tuple[LabelStatus, Box | None]]], truth: Boxes) -> Scores:
    """Scores of predicted boxes against true boxes [N, parts, 4], NaN where a part is not visible."""
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
