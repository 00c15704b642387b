"""The training losses: answer tokens with soft coordinate targets, and auxiliary losses of the image tokens."""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.recipes.grounder.architecture import PATCH, TEXT_WIDTH
from pipelines.recipes.grounder.examples import Batch
from pipelines.recipes.grounder.vision_tower import encode_patches, patch_centres, patches

TARGET_STD = 4.0  # pixels of the sent image: width of the soft target around a coordinate
CONSENSUS_WEIGHT = 6.0  # of the loss of the consensus box, whose error is relative to the part's size
AUX_GAIN = 0.25  # of the fixed projection of the dense heads


class DenseHeads(nn.Module):
    """Auxiliary heads on image tokens, used in training only and not part of the checkpoint.

    Two predictions of every image token: coverage, the parts whose box contains the patch centre, and boxes, the sides
    of each part's box relative to the patch, trained on the patches inside the box as in FCOS (Tian et al. 2019). Both
    are read with a fixed orthogonal projection of small gain: the tower must encode them with large norm in known
    directions, where the language model finds them early. `position` predicts column and row of an image token from
    the output of the language model's first layer.
    """

    def __init__(self, parts: int = 3) -> None:
        super().__init__()
        self.parts = parts
        self.projection = nn.Linear(TEXT_WIDTH, parts * 5, bias=False).requires_grad_(False)
        nn.init.orthogonal_(self.projection.weight, gain=AUX_GAIN)
        self.position = nn.Linear(TEXT_WIDTH, 2)

    def forward(self, tokens: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B, N, TEXT_WIDTH], centres [N, 2] -> coverage logits [B, N, parts], boxes [B, N, parts, 4].

        Centres and boxes are in patches.
        """
        projected = self.projection(tokens).float()
        coverage, offsets = projected[..., : self.parts], projected[..., self.parts :]
        boxes = 4 * offsets.view(*offsets.shape[:2], self.parts, 4) + torch.cat([centres, centres], dim=1)[:, None]
        return coverage, boxes


def dense_loss(coverage: Tensor, boxes: Tensor, targets: Tensor, centres: Tensor) -> Tensor:
    """Loss of the dense predictions: coverage, boxes of the patches inside the part, consensus box.

    coverage [B, N, parts] logits, boxes [B, N, parts, 4], centres [N, 2]; targets [B, parts, 4], NaN where a part is
    not visible. All in patches.
    """
    visible = targets.isfinite().all(dim=-1)  # [B, parts]
    known = targets.nan_to_num(-1.0)
    x, y = centres[None, :, None, 0], centres[None, :, None, 1]
    left, top, right, bottom = (side[:, None, :] for side in known.unbind(-1))
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)  # [B, N, parts]
    coverage_loss = F.binary_cross_entropy_with_logits(coverage, inside.float())
    error = F.smooth_l1_loss(boxes, known[:, None].expand_as(boxes), reduction="none", beta=0.3).mean(-1)
    weight = (visible[:, None] & inside).float()
    box_loss = (error * weight).sum() / weight.sum().clamp_min(1.0)
    side = (known[..., 2:] - known[..., :2]).clamp_min(1.0).repeat(1, 1, 2)
    apart = F.smooth_l1_loss(consensus_boxes(coverage, boxes) / side, known / side, reduction="none", beta=0.1).mean(-1)
    consensus_loss = (apart * visible).sum() / visible.sum().clamp_min(1)
    return coverage_loss + box_loss + CONSENSUS_WEIGHT * consensus_loss


def consensus_boxes(coverage: Tensor, boxes: Tensor) -> Tensor:
    """[B, parts, 4] mean of the predicted boxes, weighted by the squared probability of coverage; in patches."""
    weight = coverage.sigmoid().square()[..., None] + 1e-6
    return (boxes * weight).sum(1) / weight.sum(1)


class Objective:
    """Computes the losses of a model and its dense heads.

    Args:
        numbers: token ids of the numbers 0, 1, 2, ...
    """

    def __init__(self, model: Any, heads: DenseHeads, numbers: list[int]) -> None:
        self._model, self._heads = model, heads
        self._numbers = torch.tensor(numbers, device=model.device)
        self._first_layer: Tensor | None = None
        model.model.language_model.layers[0].register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._first_layer = output[0] if isinstance(output, tuple) else output

    def __call__(self, batch: Batch, *, with_text: bool) -> dict[str, Tensor]:
        """Losses by name: "dense", and `with_text` also "answer" and "position"."""
        device = self._model.device
        pixels = batch.pixels.to(device)
        rows, columns = pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
        with torch.autocast(device.type, torch.bfloat16):
            tokens = encode_patches(self._model.model.visual, patches(pixels), rows, columns)
            centres = patch_centres(rows, columns, device)
            coverage, boxes = self._heads(tokens, centres)
            losses = {"dense": dense_loss(coverage, boxes, batch.boxes.to(device) / PATCH, centres)}
            if with_text:
                losses |= self._text(batch, tokens, centres, rows, columns)
        return losses

    def _text(self, batch: Batch, tokens: Tensor, centres: Tensor, rows: int, columns: int) -> dict[str, Tensor]:
        model = self._model
        start = batch.prompt.index(model.config.image_token_id)
        prompt = [*batch.prompt[:start], *[model.config.image_token_id] * len(centres), *batch.prompt[start + 1 :]]
        answers = batch.answers.to(tokens.device)
        ids = torch.cat([torch.tensor(prompt, device=tokens.device).expand(len(answers), -1), answers], dim=1)
        embedded = model.get_input_embeddings()(ids)
        end = start + len(centres)
        inputs = torch.cat([embedded[:, :start], tokens.to(embedded.dtype), embedded[:, end:]], dim=1)
        positions = text_positions(ids.shape[1], start, rows, columns).to(tokens.device)
        hidden = model.model.language_model(
            inputs_embeds=inputs, position_ids=positions[:, None].expand(-1, len(ids), -1), use_cache=False
        ).last_hidden_state[:, len(prompt) - 1 : -1]
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 would round coordinates by pixels
            logits = F.linear(hidden.float(), model.get_input_embeddings().weight)
        assert self._first_layer is not None
        position = self._heads.position(self._first_layer[:, start:end]).float()
        return {
            "answer": answer_loss(
                logits, batch.targets.to(logits.device), batch.numbers.to(logits.device), self._numbers
            ),
            "position": F.smooth_l1_loss(position, (centres / 4).expand_as(position), beta=0.1),
        }


def answer_loss(logits: Tensor, targets: Tensor, numbers: Tensor, number_ids: Tensor) -> Tensor:
    """Mean over the answer's tokens: cross-entropy, and for coordinates the divergence from a soft target.

    Args:
        logits: [B, T, V]. targets: [B, T] token ids, -1 for padding.
        numbers: [B, T] coordinates in pixels, NaN for other tokens. number_ids: [N] tokens of the numbers 0..N-1.
    """
    log_probs = logits.log_softmax(dim=-1)
    is_number = numbers.isfinite()
    is_text = (targets >= 0) & ~is_number
    texts = -log_probs[is_text].gather(1, targets[is_text][:, None]).sum()
    distance = torch.arange(len(number_ids), device=logits.device) - numbers[is_number][:, None]
    soft_target = (-0.5 * (distance / TARGET_STD) ** 2).softmax(dim=-1)
    coordinates = F.kl_div(log_probs[is_number][:, number_ids], soft_target, reduction="sum")
    return (texts + coordinates) / (targets >= 0).sum()


@lru_cache(maxsize=512)
def text_positions(length: int, start: int, rows: int, columns: int) -> Tensor:
    """[3, length] time, row and column positions of a sequence whose image starts at `start` (Bai et al. 2025).

    Text tokens count up in all three; image tokens add their row and column to `start`, and the text after the image
    continues after the larger of the two.
    """
    before = torch.arange(start).expand(3, -1)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    image = start + torch.stack([torch.zeros(rows * columns, dtype=torch.long), y.flatten(), x.flatten()])
    after = start + max(rows, columns) + torch.arange(length - start - rows * columns)
    return torch.cat([before, image, after.expand(3, -1)], dim=1)
