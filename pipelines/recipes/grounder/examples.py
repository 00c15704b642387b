"""Training batches: augmented views of one size, one question, and its answers as tokens and as coordinates."""

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
from pipelines.recipes.grounder.views import HEIGHTS, Rng, random_view
from shared.schemas import PARTS

JOINT_SHARE = 0.7  # of the questions ask for all parts; of the rest, half ask for one part, half for a subset
MAX_TOKENS = 260  # image tokens per image; a 64 x 128 crop has 200
INPUT_JITTER = 6.0  # standard deviation in pixels of the coordinates fed as earlier answer tokens (exposure bias)


@dataclass(frozen=True)
class Batch:
    """B views with one question.

    Attributes:
        pixels: [B, H, W, 3] uint8, in the size that is sent to the model.
        boxes: [B, parts, 4] in pixels of that size, NaN where a part is not visible.
        prompt: token ids of the question, with a single image token.
        answers: [B, T] input token ids (teacher forcing), coordinates jittered; padded at the end.
        targets: [B, T] target token ids; -1 for padding.
        numbers: [B, T] the coordinate in pixels that a target token encodes; NaN for other tokens.
    """

    pixels: Tensor
    boxes: Tensor
    prompt: list[int]
    answers: Tensor
    targets: Tensor
    numbers: Tensor


class Examples:
    """Random batches from real and generated scenes; a batch depends on the seed and its number only."""

    def __init__(self, real: Scenes, generated: Scenes, processor: Any, *, batch: int, seed: int) -> None:
        self._real, self._generated = real, generated
        self._processor, self._batch, self._seed = processor, batch, seed
        self._prompts = {mode: Prompts.choose(FAMILY, mode, SHARED) for mode in ("joint", "per_part")}

    def batch(self, step: int, *, real_share: float) -> Batch:
        """Batch number `step`; a view is of a real photo with probability `real_share`."""
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
        fill = (others if rng.random() < 0.5 else scenes).pixels
        strength = float(rng.random() >= 0.6)
        other = fill[int(rng.integers(len(fill)))]
        return random_view(rng, scenes.pixels[index], scenes.boxes[index], size, other, strength=strength)

    def _question(self, rng: Rng, sent: Sent) -> Question:
        draw = rng.random()
        mode: PromptMode = "joint" if draw < (1 + JOINT_SHARE) / 2 else "per_part"
        parts = list(PARTS)
        if draw > JOINT_SHARE:
            count = 1 if mode == "per_part" else int(rng.integers(1, len(PARTS)))
            parts = [PARTS[index] for index in sorted(rng.choice(len(PARTS), count, replace=False))]
        return self._prompts[mode].questions(parts, sent, with_schema=False)[0]

    def _tokens(
        self, rng: Rng, question: Question, boxes: Boxes, limit: int
    ) -> tuple[list[int], Tensor, Tensor, Tensor]:
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        chat = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        rows = [answer_pieces(question.parts, dict(zip(PARTS, one, strict=True))) for one in boxes]
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


def answer_pieces(parts: Sequence[str], boxes: Mapping[str, npt.NDArray[np.float32]]) -> list[str | float]:
    """The answer to a question about `parts`: the text of each token, and a float for each coordinate token.

    boxes: [4] per part, in pixels of the sent image; not finite where the part is not visible.
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
    """Random width and height of the crops of one batch; common aspect ratios more often."""
    while True:
        height = int(rng.choice(HEIGHTS))
        aspect = rng.choice([0.5, 0.375, float(np.exp(rng.uniform(np.log(0.27), np.log(0.62))))], p=[0.35, 0.15, 0.5])
        size = max(12, round(height * aspect)), height
        if image_tokens(*sent_size(*size, FAMILY), FAMILY) <= MAX_TOKENS:
            return size
