from pathlib import Path

import numpy as np
import pytest

from pipelines.recipes.clip.people import People
from reid.config import ModelConfig

SHIPPED = Path(__file__).parents[4] / "reid" / "pocket"


@pytest.fixture
def small_clip() -> ModelConfig:
    """An architecture of the pocket CLIP's kind that trains in milliseconds a step."""
    architecture = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": [128, 64], "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 64, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    return ModelConfig(backbone="small", architecture=architecture, pretrained=None, image_size=(128, 64))


@pytest.fixture
def painted_people() -> People:
    """Twelve people with two images each: a rectangle in the colour of the upper garment."""
    colours = {"Red": (200, 20, 20), "Blue": (20, 20, 200), "Green": (20, 160, 20), "White": (240, 240, 240)}
    lowers = ("Black", "Grey", "Brown")
    facts = [(f"upperBody{upper}", f"lowerBody{lower}") for upper in colours for lower in lowers]
    pixels = np.stack([np.full((128, 64, 3), colours[upper[9:]], np.uint8) for upper, _ in facts for _ in range(2)])
    return People(pixels, np.repeat(np.arange(12), 2), tuple(f"painted/{n}" for n in range(12)), tuple(facts))
