"""The families' own resize, as published in qwen-vl-utils, as the oracle of what we send."""

from collections.abc import Callable
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeler.grounding.coordinates import FAMILIES, image_tokens, sent_size

Resize = Callable[..., tuple[int, int]]  # (height, width, factor, min_pixels, max_pixels) -> (height, width)

QWEN = [family for family in FAMILIES.values() if family.name.startswith("qwen")]
PROCESSOR_LIMITS = {  # area in pixels, from the preprocessor_config.json of the published models
    "qwen2-vl": (4 * 28 * 28, 16384 * 28 * 28),
    "qwen2.5-vl": (4 * 28 * 28, 16384 * 28 * 28),
    "qwen3-vl": (256 * 256, 4096 * 4096),
}
SIDES = st.integers(1, 4000)


@pytest.fixture(scope="module")
def smart_resize() -> Resize:
    module: ModuleType = pytest.importorskip(
        "qwen_vl_utils.vision_process", reason="qwen-vl-utils (extra `dev`) or its torchvision is not installed"
    )
    return module.smart_resize


@pytest.mark.parametrize("family", QWEN, ids=lambda family: family.name)
@given(width=SIDES, height=SIDES)
def test_the_published_resize_leaves_it_alone(smart_resize: Resize, family, width: int, height: int) -> None:
    w, h = sent_size(width, height, family)
    low, high = PROCESSOR_LIMITS[family.name]
    assert smart_resize(h, w, family.factor, low, high) == (h, w)
    assert smart_resize(h, w, family.factor, family.min_pixels, family.max_pixels) == (h, w)
    assert 4 <= image_tokens(w, h, family) <= 1280


@pytest.mark.parametrize(("size", "seen"), [((64, 128), (56, 140)), ((48, 128), (56, 140)), ((128, 256), (140, 252))])
def test_it_would_have_changed_the_crops_as_they_are(smart_resize: Resize, size, seen) -> None:
    height, width = smart_resize(size[1], size[0], 28)
    assert (width, height) == seen
