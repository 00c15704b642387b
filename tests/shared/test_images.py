import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.images import UnreadableImageError, decode, encode_jpeg, image_id_of, load_image


def _png(width: int = 8, height: int = 4, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), 200 if mode == "L" else None).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_join_key_is_the_start_of_the_sha256() -> None:
    assert image_id_of(b"abc") == hashlib.sha256(b"abc").hexdigest()[:16]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = decode(_png(mode=mode))
    assert (image.mode, image.size) == ("RGB", (8, 4))


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4)).save(buffer, "JPEG", exif=exif)
    assert decode(buffer.getvalue()).size == (4, 8)


_JPEG = encode_jpeg(np.random.default_rng(0).integers(0, 255, (128, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image", "not an image of a known format"),
        (_JPEG[: len(_JPEG) // 2], "truncated"),
        (_png()[:45], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image of a known format"),  # formats that run programs are not opened
    ],
)
def test_broken_content_is_one_typed_error_with_a_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.jpg"
    file.write_bytes(content)
    with pytest.raises(UnreadableImageError) as caught:
        load_image(file)
    assert reason in caught.value.reason
    assert str(file) in str(caught.value)
    assert "\n" not in caught.value.reason
    assert "0x" not in caught.value.reason


def test_a_bomb_is_refused_from_its_header() -> None:
    with pytest.raises(UnreadableImageError, match="over 100 pixels"):
        decode(_png(20, 20), max_pixels=100)


def test_a_missing_file_is_the_same_typed_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="No such file"):
        load_image(tmp_path / "nothing.jpg")
