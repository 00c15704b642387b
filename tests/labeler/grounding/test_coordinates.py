"""What is sent survives the server's own resize, and answers land where the box was painted."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from labeler.grounding.coordinates import FAMILIES, Sent, family_of, prepare, sent_size
from shared.errors import ConfigError
from shared.geometry import Box

SIDES = st.integers(1, 4000)


def server_resize(width: int, height: int, factor: int, low: int, high: int) -> tuple[int, int]:
    """The resize of the families' processors, written from its description (Bai et al. 2025)."""
    w, h = max(factor, round(width / factor) * factor), max(factor, round(height / factor) * factor)
    if w * h > high:
        shrink = math.sqrt(width * height / high)
        w, h = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
    elif w * h < low:
        grow = math.sqrt(low / (width * height))
        w, h = (math.ceil(side * grow / factor) * factor for side in (width, height))
    return w, h


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
@given(width=SIDES, height=SIDES)
def test_the_server_has_nothing_left_to_resize(family, width: int, height: int) -> None:
    w, h = sent_size(width, height, family)
    if family.square:
        assert (w, h) == (family.square, family.square)
    assert server_resize(w, h, family.factor, family.min_pixels, family.max_pixels) == (w, h)
    assert 1 / 200 < w / h < 200  # beyond that the processors refuse


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES.values() if not family.square], ids=lambda family: family.name
)
@pytest.mark.parametrize("size", [(64, 128), (48, 128), (60, 160), (50, 150), (83, 256), (128, 256), (256, 512)])
def test_crops_keep_their_shape_and_small_ones_grow(family, size: tuple[int, int]) -> None:
    w, h = sent_size(*size, family)
    x_scale, y_scale = w / size[0], h / size[1]
    assert abs(x_scale / y_scale - 1) < 0.04
    assert min(x_scale, y_scale) >= (3.9 if size[0] * size[1] <= 64 * 128 else 0.98)


def test_market_crop_is_sent_as_280x560() -> None:
    assert sent_size(64, 128, FAMILIES["qwen2.5-vl"]) == (280, 560)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl"),
        ("/models/qwen2_5_vl_3b", "qwen2.5-vl"),
        ("Qwen2-VL-72B-Instruct-AWQ", "qwen2-vl"),
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen3-vl"),
        ("THUDM/cogvlm-grounding-generalist-hf", "cogvlm"),
        ("qwen2_5_vl Qwen2_5_VLForConditionalGeneration", "qwen2.5-vl"),
        ("qwen3_vl_moe Qwen3VLMoeForConditionalGeneration", "qwen3-vl"),
        ("CogVLMForCausalLM", "cogvlm"),
    ],
)
def test_family_is_found_in_the_name(model: str, family: str) -> None:
    assert family_of(model).name == family


def test_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"qwen2\.5-vl"):
        family_of("llava-1.6")
    with pytest.raises(ConfigError, match="cogvlm"):
        family_of("THUDM/cogvlm2-llama3-chat-19B")  # another model, without boxes
    with pytest.raises(ConfigError, match=r"qwen3-vl"):
        family_of("llava-1.6", "llava")
    assert family_of("my-finetune", "qwen2-vl").name == "qwen2-vl"


@pytest.mark.parametrize(
    ("space", "answer"), [("sent_pixels", (70, 140, 210, 280)), ("thousandths", (250, 250, 750, 500))]
)
def test_one_box_in_both_spaces(space, answer) -> None:
    sent = Sent(64, 128, 280, 560, space)
    assert sent.to_image(Box(*answer)) == pytest.approx((16, 32, 48, 64))
    assert sent.name == f"{space}@280x560"


def test_prepare_sends_what_it_says() -> None:
    for family in FAMILIES.values():
        resized, sent = prepare(Image.new("RGB", (64, 128)), family)
        assert resized.size == (sent.sent_width, sent.sent_height) == sent_size(64, 128, family)
        assert (sent.image_width, sent.image_height) == (64, 128)
