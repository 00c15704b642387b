import hashlib
import io
import os
import socket
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.images import (
    MAX_FILE_BYTES,
    MAX_SIDE,
    UnreadableImageError,
    decode,
    encode_jpeg,
    image_id_of,
    load_image,
    read_file,
)


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


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP = (RAMP.astype(np.uint16) << 8) + 77


@pytest.mark.parametrize(
    "content",
    [
        saved(Image.fromarray(DEEP)),
        saved(Image.fromarray(DEEP), "TIFF"),
        saved(Image.fromarray(DEEP), "PPM"),
        saved(Image.fromarray(DEEP.astype(">u2")), "TIFF"),
        saved(Image.fromarray(RAMP)),
        saved(Image.fromarray(RAMP), "TIFF"),
    ],
    ids=["png", "tiff", "pgm", "tiff, big endian", "8 bit", "8 bit tiff"],
)
def test_16_bit_grey_keeps_its_upper_8_bits(content: bytes) -> None:
    assert np.array_equal(np.asarray(decode(content)), RAMP[..., None].repeat(3, axis=2))


def test_16_bit_grey_has_transparency_orientation_and_inverted_white_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # half a turn
    assert np.array_equal(np.asarray(decode(saved(Image.fromarray(DEEP), exif=exif)))[..., 0], RAMP[::-1, ::-1])
    hidden = np.asarray(decode(saved(Image.fromarray(DEEP), transparency=int(DEEP[15, 15]))))
    assert hidden[15, 15].tolist() == [0, 0, 0] and hidden[15, 14].tolist() == [254] * 3
    inverted = saved(Image.fromarray(DEEP), "TIFF", tiffinfo={262: 0})
    assert np.array_equal(np.asarray(decode(inverted))[..., 0], 255 - RAMP)


@pytest.mark.parametrize(
    "content",
    [
        saved(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
        saved(Image.fromarray(DEEP.astype(np.float32)), "TIFF"),
        saved(Image.fromarray(RAMP / np.float32(255)), "TIFF"),
        saved(Image.fromarray(RAMP / np.float32(255)), "PPM"),
        saved(Image.fromarray(RAMP), "TIFF", tiffinfo={339: 2}),  # signed, 8 bits
    ],
)
def test_numbers_of_unknown_range_are_unreadable(content: bytes) -> None:
    with pytest.raises(UnreadableImageError, match="range is unknown"):
        decode(content)


def coloured(mode: str, colour: tuple[int, ...] | int) -> Image.Image:
    return Image.new(mode, (4, 4), colour)


def palette() -> Image.Image:
    image = coloured("P", 1)
    image.putpalette([255, 0, 0, 200, 100, 50])
    return image


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (saved(coloured("RGBA", (200, 100, 50, 0))), (0, 0, 0)),
        (saved(coloured("RGBA", (200, 100, 50, 51))), (40, 20, 10)),
        (saved(coloured("RGBA", (200, 100, 50, 255))), (200, 100, 50)),
        (saved(coloured("RGBA", (200, 100, 50, 0)), "WEBP", lossless=True, exact=True), (0, 0, 0)),
        (saved(coloured("RGBA", (200, 100, 50, 51)), "TIFF"), (40, 20, 10)),
        (saved(coloured("LA", (200, 51))), (40, 40, 40)),
        (saved(coloured("L", 200), transparency=200), (0, 0, 0)),
        (saved(coloured("RGB", (1, 200, 3)), transparency=(1, 200, 3)), (0, 0, 0)),
        (saved(coloured("RGB", (1, 200, 3)), transparency=(1, 2, 3)), (1, 200, 3)),
        (saved(palette(), transparency=1), (0, 0, 0)),
        (saved(palette(), transparency=bytes([255, 51])), (40, 20, 10)),
        (saved(palette()), (200, 100, 50)),
        (saved(coloured("1", 1)), (255, 255, 255)),
        (saved(coloured("CMYK", (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
    ],
)
def test_hidden_colours_do_not_come_back(content: bytes, colour: tuple[int, int, int]) -> None:
    assert decode(content).getpixel((2, 2)) == colour


def png_of(depth: int, colour_type: int, row: bytes, width: int, transparent: bytes) -> bytes:
    """One row of samples of any depth, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    rows = zlib.compress(b"\0" + row)
    chunks = [chunk(b"IHDR", header), chunk(b"tRNS", transparent), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff_of_planes(bits: int, samples: np.ndarray) -> bytes:
    """An uncompressed RGB TIFF of 4 x 2 pixels in three planes, which Pillow cannot write."""
    data = samples.tobytes()
    strip = len(data) // 3
    long_values = {273: [0, strip, 2 * strip], 279: [strip] * 3}  # StripOffsets, StripByteCounts
    short = {256: 4, 257: 2, 259: 1, 262: 2, 277: 3, 278: 2, 284: 2}
    entries = {tag: (3, 1, value) for tag, value in short.items()}
    after = 8 + 2 + 12 * (len(short) + 3) + 4
    blobs = struct.pack("<3H", *[bits] * 3)
    entries[258] = (3, 3, after)
    first = after + len(blobs) + 24
    for tag, values in long_values.items():
        entries[tag] = (4, 3, after + len(blobs))
        blobs += struct.pack("<3I", *[value + first if tag == 273 else value for value in values])
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return (
        head + b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries)) + bytes(4) + blobs + data
    )


@pytest.mark.parametrize(
    ("content", "grey"),
    [
        (png_of(1, 0, bytes([0b01000000]), 2, b"\0\1"), [0, 0]),
        (png_of(2, 0, bytes([0b00011011]), 4, b"\0\2"), [0, 85, 0, 255]),
        (png_of(4, 0, bytes([0x1F]), 2, b"\0\x0f"), [17, 0]),
        (png_of(4, 0, bytes([0x1F]), 2, b"\0\x01"), [0, 255]),
        (png_of(8, 0, bytes([17, 255]), 2, b"\0\x01"), [17, 255]),
        (png_of(16, 0, struct.pack(">2H", 0x1122, 0x2233), 2, b"\x11\x22"), [0, 0x22]),
        (png_of(16, 2, struct.pack(">6H", *[0x1122] * 3, *[0x2200] * 3), 2, b"\x11\x22" * 3), [0, 0x22]),
    ],
)
def test_hidden_colours_of_any_depth_do_not_come_back(content: bytes, grey: list[int]) -> None:
    assert np.asarray(decode(content))[0].tolist() == [[value] * 3 for value in grey]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff_of_planes(16, np.arange(24, dtype="<u2") * 2000), "planes of more than 8 bits"),
        (png_of(8, 3, b"\0\1", 2, b"\xff"), "a palette of no colours"),
        (
            saved(Image.fromarray(RAMP), "TIFF").replace(
                struct.pack("<HHII", 257, 4, 1, 16), struct.pack("<HHII", 257, 4, 1, 32)
            ),
            "pixels are missing at its end",
        ),
    ],
)
def test_what_pillow_shows_in_wrong_colours_is_unreadable(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason):
        decode(content)
    assert decode(tiff_of_planes(8, np.arange(24, dtype="u1"))).getpixel((1, 0)) == (1, 9, 17)


NOISE = np.random.default_rng(1).integers(0, 255, (9, 5, 3), dtype=np.uint8)
PHOTOGRAPH = np.asarray(Image.fromarray(NOISE).resize((96, 160)))
LONG = saved(Image.fromarray(PHOTOGRAPH), "JPEG", quality=90)
PROGRESSIVE = saved(Image.fromarray(PHOTOGRAPH), "JPEG", quality=90, progressive=True)
END = b"\xff\xd9"


def of_height(jpeg: bytes, height: int) -> bytes:
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + struct.pack(">H", height) + jpeg[place + 2 :]


def second_scan(jpeg: bytes) -> int:
    return jpeg.index(b"\xff\xda", jpeg.index(b"\xff\xda") + 2)


def png_with(chunks: dict[bytes, bytes], *, wrong: bytes = b"") -> bytes:
    """A PNG of these chunks; that of the kind `wrong` has another checksum."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ (kind == wrong))
        for kind, data in chunks.items()
    )


def png_chunks(rows: bytes, *, width: int = 96, height: int = 160, interlaced: int = 0) -> dict[bytes, bytes]:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    return {b"IHDR": header, b"IDAT": zlib.compress(rows), b"tEXt": b"a\0b", b"IEND": b""}


PNG_ROWS = b"".join(b"\0" + row.tobytes() for row in PHOTOGRAPH)
WITHOUT_END = {kind: data for kind, data in png_chunks(PNG_ROWS).items() if kind != b"IEND"}
PPM_PIXELS = PHOTOGRAPH.tobytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (LONG[: len(LONG) * 2 // 3] + END, "damaged: Corrupt JPEG data: premature end of data segment"),
        (PROGRESSIVE[: len(PROGRESSIVE) * 2 // 3] + END, "damaged: Corrupt JPEG data: premature end of data segment"),
        (PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")] + END, "the last scans of a progressive JPEG are missing"),
        (PROGRESSIVE[: second_scan(PROGRESSIVE)] + END, "the last scans of a progressive JPEG are missing"),
        (LONG[: len(LONG) // 2].ljust(len(LONG), b"\0"), "premature end|Premature end|truncated"),
        (LONG[: len(LONG) // 2] + LONG[len(LONG) // 2 + 900 :], "damaged: Corrupt JPEG data"),
        (of_height(LONG, 320), "damaged: Corrupt JPEG data: premature end of data segment"),
        (of_height(LONG, 80), "damaged: Corrupt JPEG data: .* extraneous bytes before marker 0xd9"),
        (LONG.replace(b"\xff\xda", b"abc\xff\xda", 1), "damaged: Corrupt JPEG data: 3 extraneous bytes"),
        (LONG[:-2], "truncated|Premature end"),
        (png_with(png_chunks(PNG_ROWS), wrong=b"IDAT"), "wrong checksum of b'IDAT'"),
        (png_with(png_chunks(PNG_ROWS), wrong=b"tEXt"), "wrong checksum of b'tEXt'"),
        (png_with(png_chunks(PNG_ROWS), wrong=b"IEND"), "wrong checksum of b'IEND'"),
        (png_with(WITHOUT_END), "truncated: it has no end"),
        (png_with(png_chunks(PNG_ROWS))[:-2], "truncated: it has no end"),
        (png_with(png_chunks(PNG_ROWS[: 100 * 289])), "pixels are missing at its end"),
        (png_with(png_chunks(PNG_ROWS[:-1])), "truncated"),
        (png_with(png_chunks(PNG_ROWS[:-289])), "pixels are missing at its end"),
        (png_with(png_chunks(bytes(2 * (1 + 3)), width=1, height=3, interlaced=1)), "pixels are missing at its end"),
        (b"P6\r\n96 160\r\n255\r\n" + PPM_PIXELS, "line ends of a text file"),
        (b"P6 96 160 255\r\n" + PPM_PIXELS, "line ends of a text file"),
        (b"P5\r\n96 160\r\n255\r\n" + PPM_PIXELS, "line ends of a text file"),
        (saved(coloured("CMYK", 0), "JPEG").replace(b"Adobe", b"Other"), "CMYK without Adobe's mark"),
    ],
)
def test_damage_that_pillow_keeps_to_itself_is_told(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason):
        decode(content)


@pytest.mark.parametrize(
    "content",
    [
        LONG,
        PROGRESSIVE,
        saved(Image.fromarray(PHOTOGRAPH).convert("L"), "JPEG", progressive=True, restart_marker_blocks=3),
        saved(Image.fromarray(PHOTOGRAPH).convert("CMYK"), "JPEG", progressive=True),
        PROGRESSIVE + PROGRESSIVE,
        LONG[:-2] + b"\x55" * 8 + END,
        LONG[:-2] + b"\x55" * 3 + END + b"\0" * 100,
        LONG + LONG,
        saved(Image.fromarray(PHOTOGRAPH).convert("L"), "JPEG"),
        saved(Image.fromarray(PHOTOGRAPH).convert("CMYK"), "JPEG"),
        saved(Image.fromarray(PHOTOGRAPH), "JPEG", keep_rgb=True),
        saved(Image.fromarray(PHOTOGRAPH), "JPEG", subsampling=2, restart_marker_blocks=1),
        saved(Image.fromarray(PHOTOGRAPH[:17, :9]), "JPEG", subsampling=1, quality=3),
    ],
)
def test_pixels_of_a_whole_jpeg_are_pillows(content: bytes) -> None:
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(np.asarray(decode(content)), np.asarray(image.convert("RGB")))


def test_whole_files_that_look_cut_are_read() -> None:
    assert np.array_equal(np.asarray(decode(png_with(png_chunks(PNG_ROWS)))), PHOTOGRAPH)
    assert not np.asarray(decode(png_with(png_chunks(bytes(len(PNG_ROWS)))))).any()  # black to the last row
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    for width, height in ((1, 1), (1, 3), (5, 5), (8, 8)):
        passes = [(range(y, height, down), range(x, width, across)) for x, y, across, down in steps]
        rows = b"".join(bytes(len(ys) * (1 + 3 * len(xs))) for ys, xs in passes if xs)
        assert decode(png_with(png_chunks(rows, width=width, height=height, interlaced=1))).size == (width, height)
        if len(rows) > 4:
            with pytest.raises(UnreadableImageError, match=r"missing|truncated"):
                decode(png_with(png_chunks(rows[:-1], width=width, height=height, interlaced=1)))
    for start in (b"P6\n96 160\n255\n", b"P6\r\n96 160\r\n255\n", b"P6 # of a tool\n96 160 255 "):
        assert np.array_equal(np.asarray(decode(start + PPM_PIXELS)), PHOTOGRAPH)
    assert decode(b"P3\r\n1 1\r\n255\r\n1 2 3\r\n").getpixel((0, 0)) == (1, 2, 3)


ARROW = np.repeat(np.arange(24, dtype=np.uint8).reshape(6, 4, 1) * 10, 3, axis=2)  # of grey steps, no symmetry
AS_SHOWN = {  # EXIF orientation -> the stored pixels as they are to be shown, by the standard's words
    1: ARROW,
    2: ARROW[:, ::-1],  # mirrored left to right
    3: ARROW[::-1, ::-1],  # half a turn
    4: ARROW[::-1],
    5: ARROW.swapaxes(0, 1),  # row 0 is the left side, column 0 the top
    6: np.rot90(ARROW, -1),  # row 0 is the right side
    7: ARROW[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(ARROW),
    9: ARROW,  # not defined
}


@pytest.mark.parametrize("orientation", AS_SHOWN)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_every_orientation_is_applied(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    assert np.array_equal(
        np.asarray(decode(saved(Image.fromarray(ARROW), form, exif=exif, **options))), AS_SHOWN[orientation]
    )


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_of_several_frames_counts(form: str) -> None:
    frames = [Image.new("RGB", (8, 4), colour) for colour in ((255, 255, 255), (0, 0, 0))]
    content = saved(frames[0], form, save_all=True, append_images=frames[1:])
    assert decode(content).size == (8, 4) and decode(content).getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_of_other_formats(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(saved(Image.new("RGB", (8, 4)), form, exif=exif)).size == (4, 8)


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1)])
def test_sides_have_a_limit_of_their_own(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImageError, match="sides are 1 to"):
        decode(saved(Image.new("1", size)))


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(40 * 2**30)
    for name, reason in {
        "pipe": "a FIFO, not a regular file",
        "s": "a socket, not a regular file",
        "folder": "a folder, not a regular file",
        "loop": "symbolic links",
        "sparse": "larger than the limit of 256 MiB",
    }.items():
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            read_file(tmp_path / f"{name}.jpg")
        assert name in str(caught.value.path)
    with pytest.raises(UnreadableImageError, match="a device, not a regular file"):
        read_file(Path("/dev/zero"))


def test_a_file_that_grows_or_hides_its_size_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "long.jpg"
    file.write_bytes(b"x" * 100)
    whole = os.fstat

    def short(descriptor: int) -> os.stat_result:
        found = whole(descriptor)
        return os.stat_result((*found[:6], 0, *found[7:])) if stat.S_ISREG(found.st_mode) else found

    monkeypatch.setattr(os, "fstat", short)
    monkeypatch.setattr("shared.images.MAX_FILE_BYTES", 99)
    with pytest.raises(UnreadableImageError, match="larger than the limit"):
        read_file(file)
    assert MAX_FILE_BYTES == 256 * 2**20
