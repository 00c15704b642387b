"""What training minimises: the likelihood of answers, with neighbours of a right coordinate nearly as right."""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.recipes.grounder.architecture import PATCH
from pipelines.recipes.grounder.examples import Batch
from pipelines.recipes.grounder.vision_tower import DenseHeads, centres, dense_loss, look, patches

TARGET_STD = 4.0  # pixels of the sent image around a right coordinate: a box has four answers that are as good


class Objective:
    """Losses of a model and its dense heads on batches.

    Args:
        numbers: token ids of the numbers from 0 on.
    """

    def __init__(self, model: Any, heads: DenseHeads, numbers: list[int]) -> None:
        self._model, self._heads = model, heads
        self._numbers = torch.tensor(numbers, device=model.device)
        self._first_layer: Tensor | None = None
        model.model.language_model.layers[0].register_forward_hook(self._note)

    def _note(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._first_layer = output[0] if isinstance(output, tuple) else output

    def __call__(self, batch: Batch, *, with_text: bool) -> dict[str, Tensor]:
        """Losses by name: of the dense heads and, `with_text`, of the answers and of the tokens' places."""
        device = self._model.device
        pixels = batch.pixels.to(device)
        rows, columns = pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
        with torch.autocast(device.type, torch.bfloat16):
            tokens = look(self._model.model.visual, patches(pixels), rows, columns)
            middles = centres(rows, columns, device)
            coverage, votes = self._heads(tokens, middles)
            losses = {"dense": dense_loss(coverage, votes, batch.boxes.to(device) / PATCH, middles)}
            if with_text:
                losses |= self._text(batch, tokens, middles, rows, columns)
        return losses

    def _text(self, batch: Batch, tokens: Tensor, middles: Tensor, rows: int, columns: int) -> dict[str, Tensor]:
        model = self._model
        place = batch.prompt.index(model.config.image_token_id)
        prompt = [*batch.prompt[:place], *[model.config.image_token_id] * len(middles), *batch.prompt[place + 1 :]]
        answers = batch.answers.to(tokens.device)
        ids = torch.cat([torch.tensor(prompt, device=tokens.device).expand(len(answers), -1), answers], dim=1)
        words = model.get_input_embeddings()(ids)
        end = place + len(middles)
        given = torch.cat([words[:, :place], tokens.to(words.dtype), words[:, end:]], dim=1)
        positions = text_positions(ids.shape[1], place, rows, columns).to(tokens.device)
        said = model.model.language_model(
            inputs_embeds=given, position_ids=positions[:, None].expand(-1, len(ids), -1), use_cache=False
        ).last_hidden_state[:, len(prompt) - 1 : -1]
        with torch.autocast(said.device.type, enabled=False):  # bfloat16 would round coordinates to some pixels
            logits = F.linear(said.float(), model.get_input_embeddings().weight)
        assert self._first_layer is not None
        where = self._heads.place(self._first_layer[:, place:end]).float()
        return {
            "answer": answer_loss(
                logits, batch.targets.to(logits.device), batch.numbers.to(logits.device), self._numbers
            ),
            "place": F.smooth_l1_loss(where, (middles / 4).expand_as(where), beta=0.1),
        }


def answer_loss(logits: Tensor, targets: Tensor, numbers: Tensor, number_ids: Tensor) -> Tensor:
    """Mean divergence over an answer's tokens.

    Args:
        logits: [B, T, V]. targets: [B, T] token ids, -1 for padding.
        numbers: [B, T] coordinates in pixels, NaN where a token is none. number_ids: [N] tokens of the numbers 0..N-1.
    """
    likely = logits.log_softmax(dim=-1)
    is_number = numbers.isfinite()
    plain = (targets >= 0) & ~is_number
    texts = -likely[plain].gather(1, targets[plain][:, None]).sum()
    distance = torch.arange(len(number_ids), device=logits.device) - numbers[is_number][:, None]
    wanted = (-0.5 * (distance / TARGET_STD) ** 2).softmax(dim=-1)
    coordinates = F.kl_div(likely[is_number][:, number_ids], wanted, reduction="sum")
    return (texts + coordinates) / (targets >= 0).sum()


@lru_cache(maxsize=512)
def text_positions(length: int, place: int, rows: int, columns: int) -> Tensor:
    """[3, length] time, row and column positions of a sequence whose image starts at `place` (Bai et al. 2025).

    Text counts on in all three; the image's tokens add their row and column to the place where it starts, and the text
    after it goes on behind the larger side.
    """
    before = torch.arange(place).expand(3, -1)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    image = place + torch.stack([torch.zeros(rows * columns, dtype=torch.long), y.flatten(), x.flatten()])
    after = place + max(rows, columns) + torch.arange(length - place - rows * columns)
    return torch.cat([before, image, after.expand(3, -1)], dim=1)
