import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reid.data.augment import Augmentation
from reid.data.decoding import _is_bare, load_pixels, load_scanned_pixels
from reid.data.part_masks import PatchGrid
from reid.data.person_images import Batch, PersonImages, in_order, load_batches
from reid.data.transforms import TESTING
from shared.errors import DgreidError
from shared.images import MAX_PIXELS, UnreadableImageError, image_id_of, load_image

GRID = PatchGrid(32, 16, 8, 8)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 10, 3), dtype=np.uint8)).save(path)
    return paths


def make(files: list[Path], flip: float = 0.5) -> PersonImages:
    boxes = np.tile(np.array([[[0.0, 0.0, 5.0, 10.0]]]), (len(files), 1, 1))
    return PersonImages(files, GRID, TESTING, boxes=boxes, augmentation=Augmentation(flip=flip, seed=3))


def epoch_of(images: PersonImages, epoch: int, workers: int = 0) -> Batch:
    images.epoch = epoch
    columns = zip(*load_batches(images, in_order(len(images), 2), workers), strict=True)
    return Batch(*(torch.cat(column) for column in columns))


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_batch_holds_pixels_patches_and_indices(files: list[Path]) -> None:
    found = epoch_of(make(files, flip=0.0), 1)
    assert found.images.shape == (5, 3, 32, 16) and found.images.dtype == torch.uint8
    assert found.indices.tolist() == [0, 1, 2, 3, 4]
    expected = np.asarray(Image.open(files[3]).resize((16, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(found.images[3].numpy().astype(int) - expected).max() <= 1
    assert found.visible[0, 0].view(4, 2).tolist() == [[True, False], [True, False], [False, False], [False, False]]


def test_flipped_images_carry_flipped_patches(files: list[Path]) -> None:
    straight, mirrored = epoch_of(make(files, flip=0.0), 1), epoch_of(make(files, flip=1.0), 1)
    assert torch.equal(mirrored.images, straight.images.flip(-1))
    assert torch.equal(mirrored.visible.view(5, 1, 4, 2), straight.visible.view(5, 1, 4, 2).flip(-1))


def test_threads_change_nothing(files: list[Path]) -> None:
    images = make(files)
    first, second = epoch_of(images, 1), epoch_of(images, 2)
    assert not torch.equal(first.images, second.images)  # another epoch flips others
    assert same(epoch_of(images, 1), first)
    assert same(epoch_of(images, 2, workers=3), second)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_broke_is_named_in_one_sentence(files: list[Path], workers: int) -> None:
    files[3].write_bytes(b"no image")
    with pytest.raises(DgreidError) as caught:
        epoch_of(make(files), 1, workers)
    assert str(files[3]) in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_file_that_changed_since_it_was_scanned_is_refused(files: list[Path]) -> None:
    ids = [image_id_of(path.read_bytes()) for path in files]
    checked = PersonImages(files, GRID, TESTING, image_ids=ids)
    assert same(epoch_of(checked, 1), epoch_of(PersonImages(files, GRID, TESTING), 1))
    files[3].write_bytes(files[2].read_bytes())
    with pytest.raises(DgreidError, match=r"not those that were scanned .*3\.png"):
        epoch_of(checked, 1)


def test_batches_that_nobody_takes_leave_no_thread(files: list[Path]) -> None:
    loaded = load_batches(make(files), in_order(5, 1), 2)
    next(loaded)
    assert [thread for thread in threading.enumerate() if thread.name == "batches"]
    loaded.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_loading_leaves_the_global_random_state_alone(files: list[Path]) -> None:
    before = torch.get_rng_state()
    epoch_of(make(files), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_in_order_covers_everything_once() -> None:
    assert [list(batch) for batch in in_order(5, 2)] == [[0, 1], [2, 3], [4]]
    assert in_order(0, 2) == [] and len(in_order(4, 2)) == 2


PIXELS = np.random.default_rng(1).integers(0, 256, (37, 18, 3), dtype=np.uint8).repeat(3, axis=0)


def photograph(form: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def with_chunk(png: bytes, kind: bytes, content: bytes, last: bool = False) -> bytes:
    """A PNG with one more chunk, after the header or after the pixels."""
    place = png.index(b"IEND") - 4 if last else 33
    return png[:place] + b"".join(
        [struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(kind + content)), png[place:]]
    )


def from_the_top(bmp: bytes) -> bytes:
    """A BMP whose rows are read the other way round."""
    return bmp[:22] + struct.pack("<i", -struct.unpack("<i", bmp[22:26])[0]) + bmp[26:]


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    return exif


@pytest.mark.parametrize(
    "content",
    [
        photograph("JPEG"),
        photograph("JPEG", quality=60, subsampling=2),
        photograph("JPEG", progressive=True),
        photograph("JPEG", exif=turned()),
        photograph("JPEG", xmp=b'<x><rdf:Description tiff:Orientation="6"/></x>'),
        photograph("JPEG", keep_rgb=True),
        photograph("MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
        photograph("JPEG", "L"),
        photograph("JPEG", "CMYK"),
        photograph("PNG"),
        photograph("PNG", "RGBA"),
        photograph("PNG", "P"),
        photograph("PNG", "L"),
        photograph("PNG", dpi=(72, 72)),
        photograph("PNG", exif=turned()),
        photograph("PNG", icc_profile=b"a profile"),
        photograph("PNG", transparency=tuple(PIXELS[0, 0].tolist())),
        photograph("PNG", save_all=True, append_images=[Image.new("RGB", (9, 37))]),
        with_chunk(photograph("PNG"), b"gAMA", struct.pack(">I", 100_000)),
        with_chunk(photograph("PNG"), b"eXIf", turned().tobytes().removeprefix(b"Exif\0\0"), last=True),
        photograph("BMP"),
        photograph("BMP", "L"),
        photograph("BMP", "RGBA"),
        from_the_top(photograph("BMP")),
        photograph("WEBP", lossless=True),
    ],
)
def test_pixels_are_pillows(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    expected = np.asarray(load_image(path))
    assert np.array_equal(load_pixels(path).permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(load_scanned_pixels(path, image_id_of(content)).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("content", "bare"),
    [
        (photograph("JPEG"), True),
        (photograph("JPEG", progressive=True, comment=b"of a camera"), True),
        (photograph("JPEG", exif=turned()), False),
        (photograph("JPEG", "L"), False),
        (photograph("JPEG", "CMYK"), False),
        (photograph("PNG"), True),
        (photograph("PNG", dpi=(72, 72)), True),
        (with_chunk(photograph("PNG"), b"gAMA", struct.pack(">I", 100_000)), True),
        (with_chunk(photograph("PNG"), b"eXIf", turned().tobytes().removeprefix(b"Exif\0\0"), last=True), False),
        (photograph("PNG", exif=turned()), False),
        (photograph("PNG", transparency=tuple(PIXELS[0, 0].tolist())), False),
        (photograph("PNG", icc_profile=b"a profile"), False),
        (photograph("PNG", save_all=True, append_images=[Image.new("RGB", (9, 37))]), False),
        (photograph("PNG", "L"), False),
        (photograph("PNG", "RGBA"), False),
        (photograph("PNG")[:-12], False),
        (photograph("PNG")[:20], False),
        (photograph("BMP"), True),
        (photograph("BMP", "L"), False),
        (photograph("BMP", "RGBA"), False),
        (from_the_top(photograph("BMP")), False),
        (photograph("BMP")[:-1], False),
        (photograph("BMP")[:30], False),
        (photograph("WEBP"), False),
        (photograph("JPEG")[:40], False),
        (b"\xff\xd8" + b"\xff\xfe\x00\x00" * 3, False),
        (b"", False),
    ],
)
def test_which_files_need_no_look_at_their_header(content: bytes, bare: bool) -> None:
    assert _is_bare(content) is bare


JPEG = photograph("JPEG")
FRAME = JPEG.index(b"\xff\xc0") + 5  # height and width in the header


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:-2], "truncated"),
        (b"no image", "not an image of a known format"),
        (JPEG[:FRAME] + struct.pack(">HH", 65_000, 65_000) + JPEG[FRAME + 4 :], f"over {MAX_PIXELS} pixels|bomb"),
    ],
)
def test_a_broken_or_hostile_file_is_one_error_with_pillows_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        load_pixels(path)
    assert str(path) in str(caught.value)
