"""One training step of each stage as a module: what Fabric wraps, and needs no waiting for a device."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.config import Stage2Config
from reid.data.transforms import normalised, sent
from reid.inference.devices import gathered, processes
from reid.model.muva import Muva, part_slices
from reid.training.losses import (
    IdentityMemory,
    identity_loss,
    mask_bce_loss,
    mask_dice_loss,
    prompt_loss,
    text_loss,
)


class PromptStep(nn.Module):
    """The loss of one batch of labels; what Fabric wraps.

    Args:
        model: with trainable prompts.
        prototypes: [K, F], L2-normalised.
    """

    prototypes: Tensor

    def __init__(self, model: Muva, prototypes: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("prototypes", prototypes)

    def forward(self, identities: Tensor, positions: Tensor) -> Tensor:
        """The different identities [n] of a batch, and the place of each image's among them [B], both long, as
        `torch.unique` gives them on the CPU: on a GPU it would wait -> loss; each identity's prompts are encoded once,
        however often it occurs."""
        text = self.model.encode_text(identities)[positions]
        return prompt_loss(text, self.prototypes, identities[positions])


class ImageStep(nn.Module):
    """The losses of one batch; what Fabric wraps.

    Args:
        model: with a trainable image side.
        text: [K, F] text prototypes, constant.
        config: weights and settings of the losses.
        leave_out_absent_parts: a part that is visible in no patch of an image adds nothing to the image's losses. Its
            masks are left out of both means, and its slice of the feature is 0 for classifier, text and memory.
    """

    text: Tensor

    def __init__(
        self, model: Muva, text: Tensor, config: Stage2Config, *, leave_out_absent_parts: bool = False
    ) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.leave_out_absent_parts = leave_out_absent_parts
        self.memory = IdentityMemory(torch.zeros_like(text), config.memory_temperature, config.memory_momentum)
        self.register_buffer("text", text)
        self.draws = torch.Generator()  # of the identities of a step, where not all are used; reseeded per epoch

    def forward(self, images: Tensor, labels: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """images uint8 [B, 3, H, W], labels long [B], visible bool [B, R, L] -> the weighted sum of the losses, and
        the values named by `measures`, without gradient. The attention runs on predicted masks only.

        With several processes B is a share of the batch: losses over identities are those of the whole batch, mask
        losses those of the share, and the mean over the processes is the whole batch's."""
        config, weights, visible_slices = self.config, None, None
        features, mask_logits = self.model.encode_images(normalised(images))
        features, labels = gathered(features), gathered(labels)
        necked = self.model.neck(features)
        if self.leave_out_absent_parts:
            present = visible.any(dim=-1)  # (B, R)
            all_present = gathered(present)
            weights = present * processes() / all_present.sum().clamp_min(1)
            visible_slices = part_slices(all_present, features.shape[1])
            features, necked = features * visible_slices, necked * visible_slices
        among, targets, text, classes = self._drawn(labels), labels, self.text, self.model.classifier.weight
        if among is not None:
            chosen, targets = among
            classes, text = classes[chosen], text[chosen]
        identity, preferred = identity_loss(necked, classes, targets, config.label_smoothing)
        losses = {
            "identity": identity,
            "memory": self.memory(F.normalize(necked, dim=1), labels, visible_slices, among),
            "text": text_loss(features, text, targets, config.label_smoothing, config.text_temperature),
        }
        diagnostics = {"accuracy": (preferred == targets).float().mean()}
        if mask_logits is not None:
            encoder = self.model.image_encoder
            losses["mask_bce"] = mask_bce_loss(mask_logits, visible, weights)
            losses["mask_dice"] = mask_dice_loss(mask_logits, visible, encoder.mask_temperature, weights)
            predicted = encoder.visible_patches(mask_logits[-1])
            both = gathered(torch.stack([(predicted & visible).sum(), (predicted | visible).sum()])[None]).sum(dim=0)
            diagnostics["mask_iou"] = both[0] / both[1].clamp_min(1)
        factors = config.losses.model_dump()
        total = torch.stack([factors[name] * loss for name, loss in losses.items()]).sum()
        values = {"loss": total, **losses, **diagnostics}
        return total, torch.stack([values[name].detach().float() for name in self.measures])

    def _drawn(self, labels: Tensor) -> tuple[Tensor, Tensor] | None:
        """The identities (S,) of this step, those of all labels (B,) among them, and the labels' places among them;
        None: all identities."""
        count, total = self.config.sampled_identities, len(self.text)
        if count is None or count >= total:
            return None
        order = sent(torch.rand(total, generator=self.draws), labels.device)  # drawn on the CPU: the same everywhere
        order[labels] = 2.0  # above everybody else
        chosen = order.topk(max(count, len(labels))).indices if max(count, len(labels)) < total else None
        if chosen is None:
            return None
        places = torch.empty(total, dtype=torch.int64, device=labels.device)
        places[chosen] = torch.arange(len(chosen), device=labels.device)
        return chosen, places[labels]

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the values that `forward` returns; without parts there are no masks to measure."""
        masks = ("mask_bce", "mask_dice", "mask_iou") if self.model.num_parts else ()
        return ("loss", "identity", "memory", "text", *masks, "accuracy")
