"""MUVA (Li, Gong, Zhang 2026): CLIP with part tokens, predicted part masks, identity prompts and a BN neck."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.config import ModelConfig
from reid.data.part_masks import PatchGrid
from reid.model.backbone import load_clip
from reid.model.image_encoder import ImageOutput, MaskedEncoder
from reid.model.text_encoder import Prompts, TextEncoder
from shared.errors import ConfigError

NECK_MOMENTUM = 0.19  # one pass that moves the statistics as far as two passes with 0.1: 1 - 0.9^2


class Muva(nn.Module):
    """The whole model; build it with `build_model`.

    Symbols: B images, R parts, L patches, E joint width, F = (1 + R) * E, K identities.
    """

    def __init__(self, clip: Any, config: ModelConfig, datasets: Sequence[str]) -> None:
        super().__init__()
        height, width = config.image_size
        self.grid = PatchGrid(height, width, clip.visual.conv1.kernel_size[0], config.stride)
        self.num_parts = len(config.parts)
        self.num_identities = len(datasets)
        self.feature_dim = (1 + self.num_parts) * clip.visual.proj.shape[1]
        self.image_encoder = MaskedEncoder(
            clip.visual,
            self.grid,
            num_parts=self.num_parts,
            mask_heads=config.mask_heads,
            mask_temperature=config.mask_temperature,
            gate_threshold=config.gate_threshold,
            soft_gate=config.soft_gate,
            additive=config.attention_mask == "additive",
        )
        self.text_encoder = TextEncoder(clip)
        self.bnneck = nn.BatchNorm1d(self.feature_dim, momentum=NECK_MOMENTUM)
        self.bnneck.bias.requires_grad_(False)  # stays 0
        self.classifier = nn.Linear(self.feature_dim, self.num_identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)
        self.prompts = Prompts(clip.token_embedding.weight, config, datasets, clip.context_length)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> ImageOutput:
        return self.encode_images(images, visible)

    def encode_images(self, images: Tensor, visible: Tensor | None = None) -> ImageOutput:
        """Features before the neck.

        Args:
            images: (B, 3, height, width) float, normalised with mean = std = 0.5.
            visible: (B, R, L) bool masks to use at every block; None: the model predicts its own.
        """
        output: ImageOutput = self.image_encoder(images, visible)
        return output

    def neck(self, features: Tensor) -> Tensor:
        """Batch normalisation (B, F) -> (B, F); in training mode it moves the running statistics once."""
        normalised: Tensor = self.bnneck(features)
        return normalised

    def classify(self, neck_features: Tensor) -> Tensor:
        """(B, F) after the neck -> identity logits (B, K)."""
        logits: Tensor = self.classifier(neck_features)
        return logits

    def encode_text(self, identities: Tensor) -> Tensor:
        """Prompts of these identities: (n,) int64 in 0..K-1 -> (n, F), whole person first, not normalised."""
        embedded, ends = self.prompts(identities)  # (n, 1 + R, T, W), (n, 1 + R)
        features: Tensor = self.text_encoder(embedded.flatten(0, 1), ends.flatten())
        return features.view(len(identities), self.feature_dim).float()

    def embed(self, images: Tensor) -> ImageOutput:
        """Encode images (B, 3, height, width) under predicted masks; features (B, F) are those after the neck,
        L2-normalised. Call it in eval mode."""
        features, mask_logits = self.encode_images(images)
        return ImageOutput(F.normalize(self.neck(features), dim=1), mask_logits)

    def retrieval_features(self, images: Tensor) -> Tensor:
        """The features (B, F) of `embed`."""
        return self.embed(images).features


def part_slices(present: Tensor, feature_dim: int) -> Tensor:
    """Which entries of a feature belong to a visible part: (B, R) bool -> (B, F) float 0 or 1, whole person first.

    Multiplied into a feature it removes the slices of absent parts from every product with a classifier row, a text
    prototype or a memory row; after the neck 0 is also the average image's value.
    """
    whole = present.new_ones(len(present), 1)
    granularities = torch.cat([whole, present], dim=1).float()  # (B, 1 + R)
    return granularities.repeat_interleave(feature_dim // granularities.shape[1], dim=1)


def build_model(
    config: ModelConfig,
    num_identities: int,
    *,
    seed: int,
    load_weights: bool = True,
    datasets: Sequence[str] | None = None,
) -> Muva:
    """Build the model on the CPU in float32.

    Args:
        num_identities: K of the classifier and the prompts.
        seed: of everything initialised at random; the global random state is left as it was.
        load_weights: False leaves the backbone at random, for a model whose checkpoint is loaded next, so that
            evaluation does not need CLIP's weights file.
        datasets: the data set of each identity, for `domain_contexts`; not needed where a checkpoint is loaded next.
    Raises:
        ConfigError: unknown or unsuitable backbone, its weights are not there, or sizes that do not fit together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed accelerators
        clip = load_clip(config, load_weights=load_weights)
        _check_sizes(config, clip)
        return Muva(clip, config, datasets or [""] * num_identities)


def _check_sizes(config: ModelConfig, clip: Any) -> None:
    patch, width = clip.visual.conv1.kernel_size[0], clip.visual.conv1.out_channels
    if min(config.image_size) < patch:
        raise ConfigError(
            f"model.image_size={list(config.image_size)} is smaller than a patch of {patch} pixels",
            fix="set model.image_size=[256,128]",
        )
    if width % config.mask_heads:
        raise ConfigError(
            f"model.mask_heads={config.mask_heads} does not divide the width {width}", fix="set model.mask_heads=2"
        )
