"""Batches to train on: views of one size with one question, and the answer as tokens and as numbers between tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labeler.grounding.coordinates import Sent, image_tokens, resize, sent_size
from labeler.grounding.prompts import PromptMode, Prompts, Question
from labeler.grounding.vocabulary import SHARED
from pipelines.recipes.grounder.architecture import FAMILY
from pipelines.recipes.grounder.scenes import Boxes, Scenes
from pipelines.recipes.grounder.views import HEIGHTS, Rng, view
from shared.schemas import PARTS

JOINT_SHARE = 0.7  # of the questions; half of the rest ask for one part, half for some of them
MAX_TOKENS = 260  # image tokens of a batch's pictures; the usual shape has 200
INPUT_JITTER = 6.0  # pixels: what was answered before is not exactly right in use either


@dataclass(frozen=True)
class Batch:
    """B views with one question.

    Attributes:
        pixels: [B, H, W, 3] uint8, of the size that is sent.
        boxes: [B, parts, 4] in pixels of that size, NaN where a part is not visible.
        prompt: token ids of the question with one image token.
        answers: [B, T] token ids that the model is fed, coordinates jittered; padded at the end.
        targets: [B, T] the right token ids; -1 for padding.
        numbers: [B, T] the coordinate that a token stands for, in pixels; NaN where it is none.
    """

    pixels: Tensor
    boxes: Tensor
    prompt: list[int]
    answers: Tensor
    targets: Tensor
    numbers: Tensor


class Examples:
    """Random batches without end from real and generated scenes; each is made from a seed of its own."""

    def __init__(self, real: Scenes, generated: Scenes, processor: Any, *, batch: int, seed: int) -> None:
        self._real, self._generated = real, generated
        self._processor, self._batch, self._seed = processor, batch, seed
        self._prompts = {mode: Prompts.choose(FAMILY, mode, SHARED) for mode in ("joint", "per_part")}

    def batch(self, step: int, *, real_share: float) -> Batch:
        """Batch number `step`; `real_share` of its views are of photos."""
        rng = np.random.default_rng((self._seed, step))
        size = _crop_size(rng)
        sent = sent_size(*size, FAMILY)
        views = [self._view(rng, size, real=rng.random() < real_share) for _ in range(self._batch)]
        pixels = np.stack([resize(one, sent) for one, _ in views])
        boxes = np.stack([one for _, one in views]) * np.array([sent[0] / size[0], sent[1] / size[1]] * 2, np.float32)
        question = self._question(rng, Sent(*size, *sent, FAMILY.space))
        prompt, answers, targets, numbers = self._tokens(rng, question, boxes, max(sent))
        return Batch(torch.from_numpy(pixels), torch.from_numpy(boxes), prompt, answers, targets, numbers)

    def _view(self, rng: Rng, size: tuple[int, int], *, real: bool) -> tuple[Any, Boxes]:
        scenes, others = (self._real, self._generated) if real else (self._generated, self._real)
        index = int(rng.integers(len(scenes)))
        around = (others if rng.random() < 0.5 else scenes).pixels
        gentle = float(rng.random() < 0.6)
        return view(
            rng, scenes.pixels[index], scenes.boxes[index], size, around[int(rng.integers(len(around)))], gentle=gentle
        )

    def _question(self, rng: Rng, sent: Sent) -> Question:
        chance = rng.random()
        mode: PromptMode = "joint" if chance < (1 + JOINT_SHARE) / 2 else "per_part"
        parts = list(PARTS)
        if chance > JOINT_SHARE:
            kept = 1 if mode == "per_part" else int(rng.integers(1, len(PARTS)))
            parts = [PARTS[index] for index in sorted(rng.choice(len(PARTS), kept, replace=False))]
        return self._prompts[mode].questions(parts, sent, with_schema=False)[0]

    def _tokens(
        self, rng: Rng, question: Question, boxes: Boxes, limit: int
    ) -> tuple[list[int], Tensor, Tensor, Tensor]:
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        chat = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        rows = [written(question.parts, dict(zip(PARTS, one, strict=True))) for one in boxes]
        shape = len(rows), max(map(len, rows))
        targets, answers = torch.full(shape, -1), torch.full(shape, self._processor.tokenizer.pad_token_id)
        numbers = torch.full(shape, torch.nan)
        for row, pieces in enumerate(rows):
            jittered = [
                piece if isinstance(piece, str) else piece + float(rng.normal(0, INPUT_JITTER)) for piece in pieces
            ]
            targets[row, : len(pieces)] = torch.tensor(self._ids(pieces, limit))
            answers[row, : len(pieces)] = torch.tensor(self._ids(jittered, limit))
            values = [torch.nan if isinstance(piece, str) else piece for piece in pieces]
            numbers[row, : len(pieces)] = torch.tensor(values)
        return self._processor.tokenizer(chat)["input_ids"], answers, targets, numbers

    def _ids(self, pieces: Sequence[str | float], limit: int) -> list[int]:
        texts = [piece if isinstance(piece, str) else str(min(max(round(piece), 0), limit)) for piece in pieces]
        ids: list[int] = self._processor.tokenizer.convert_tokens_to_ids(texts)
        return ids


def written(parts: Sequence[str], boxes: Mapping[str, npt.NDArray[np.float32]]) -> list[str | float]:
    """The answer to a question about `parts`: the texts of its tokens, and coordinates where a number is written.

    A box [4] in pixels of the sent image that is not finite is a part that is not visible.
    """
    pieces: list[str | float] = []
    before = "{"
    for part in parts:
        box = boxes[part].tolist()
        if np.isfinite(boxes[part]).all():
            pieces += [f'{before}"{part}":[', box[0], ",", box[1], ",", box[2], ",", box[3]]
            before = "],"
        else:
            pieces.append(f'{before}"{part}":null')
            before = ","
    return [*pieces, "]}" if before == "]," else "}", "<|im_end|>"]


def _crop_size(rng: Rng) -> tuple[int, int]:
    """Width and height of the crops of one batch: the usual shapes more often."""
    while True:
        height = int(rng.choice(HEIGHTS))
        aspect = rng.choice([0.5, 0.375, float(np.exp(rng.uniform(np.log(0.27), np.log(0.62))))], p=[0.35, 0.15, 0.5])
        size = max(12, round(height * aspect)), height
        if image_tokens(*sent_size(*size, FAMILY), FAMILY) <= MAX_TOKENS:
            return size
