from collections.abc import Callable
from typing import Any

import pytest
import torch

from reid.config import ModelConfig

torch.set_num_threads(1)


@pytest.fixture
def model_config() -> Callable[..., ModelConfig]:
    """Makes configurations of a CLIP that runs in milliseconds: 3 blocks of width 32, 6 x 3 patches of 8 pixels."""

    def make(**changes: Any) -> ModelConfig:
        architecture = {
            "embed_dim": 12,
            "quick_gelu": True,
            "vision_cfg": {"image_size": [48, 24], "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
        }
        defaults = {"backbone": "small", "architecture": architecture, "pretrained": None}
        return ModelConfig(**{**defaults, "image_size": (48, 24), "stride": 8, **changes})

    return make
