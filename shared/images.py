"""Opening images that nobody vouched for: one hash, one decoder, one typed error, never a loop."""

import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from shared.errors import DgreidError
from shared.files import read_limited

MAX_PIXELS = 50_000_000  # a person crop has under a million; far larger ones are decompression bombs
MAX_SIDE = 30_000  # pixels
MAX_FILE_BYTES = 256 * 2**20  # an uncompressed image of MAX_PIXELS fits
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
_ORIENTATION = 0x0112  # EXIF tag
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 259, 262, 284, 339  # TIFF tags
_SIGNED = 2  # a sample format
_JPEG_COLOURS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # mode of Pillow -> of TurboJPEG
_JPEG_DAMAGE = ("Corrupt JPEG data", "Inconsistent progression", "Premature end")  # starts of libjpeg's warnings
_JPEG_END = b"\xff\xd9"
_SURPLUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_PADDING = 8  # bytes that some cameras leave before the end marker
_JPEG_MARKER = re.compile(
    rb"\xff[^\x00\x01\xd0-\xd7\xff]"
)  # of a segment; what else follows 0xFF belongs to the pixels
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by type of colour
_INTERLACED = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_STEPS_OF_GREY = {"L;2": 85, "L;4": 17}  # samples of 2 and 4 bits in a PNG, as Pillow names them -> one step in 8 bits


class UnreadableImageError(DgreidError):
    """The bytes are not an image that we accept."""

    def __init__(self, reason: str, path: Path | str | None = None) -> None:
        self.reason = reason
        super().__init__(
            f"unreadable image: {reason}",
            path=path,
            fix="replace the file, or delete it and scan the data set again",
        )


def image_id_of(content: bytes) -> str:
    """The join key of the whole project: first 16 hex digits of the SHA-256 of the file's bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


@contextmanager
def opened(content: bytes, path: Path | str | None = None, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """An image whose header has been read, and no pixel yet.

    Raises UnreadableImageError for empty, unknown or over-large content, and in place of whatever goes wrong inside the
    `with` block: Pillow's decoders raise many types on hostile bytes, and all mean the same to us.
    """
    if not content:
        raise UnreadableImageError("the file is empty", path)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise UnreadableImageError(f"{image.width} x {image.height} is over {max_pixels} pixels", path)
            if not 1 <= min(image.size) <= max(image.size) <= MAX_SIDE:
                raise UnreadableImageError(f"{image.width} x {image.height}: sides are 1 to {MAX_SIDE} pixels", path)
            yield image
    except UnreadableImageError as err:
        raise UnreadableImageError(err.reason, path) from err
    except Image.DecompressionBombError as err:
        raise UnreadableImageError("a decompression bomb", path) from err
    except UnidentifiedImageError as err:
        raise UnreadableImageError("not an image of a known format", path) from err
    except Exception as err:
        raise UnreadableImageError(_one_line(err), path) from err


def decode(content: bytes, path: Path | str | None = None, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a whole image to RGB, 8 bits a channel.

    The first frame of several, its EXIF orientation applied, transparency composited onto black. 16-bit channels keep
    their upper 8 bits; CMYK is converted without colour profiles. Every size and box of the project is in pixels of
    this image.

    Raises UnreadableImageError for empty, truncated, unknown or over-large content (the size is read from the
    header, before any pixel is decoded), for grey images of signed, 32-bit or float numbers, whose range of
    values no file states, and for what Pillow would show damaged or in wrong colours without an error.
    """
    with opened(content, path, max_pixels=max_pixels) as image:
        return to_rgb(image, content)


def to_rgb(image: Image.Image, content: bytes | None, *, upright: bool = True) -> Image.Image:
    """The RGB image of an `opened` one, as `decode` returns it; for use inside the `with` block of `opened`.

    content: of the file; None for an image that is none of ours, whose file is not checked for damage.
    upright: apply the EXIF orientation.
    """
    transparent = _transparent_in_8_bits(image)
    _check_all_rows(image)
    if content is not None and image.format in ("JPEG", "MPO"):
        image = _undamaged_jpeg(image, content)
    elif content is not None and image.format == "PPM":
        _check_line_ends(image, content)
    image.load()
    _check_colours(image)
    if content is not None and image.format == "PNG":
        _check_png(image, content)
    if transparent is not None:
        image.info["transparency"] = transparent
    plain = _to_8_bits(image)
    return _without_alpha(ImageOps.exif_transpose(plain) if upright else plain)


def _undamaged_jpeg(image: Image.Image, content: bytes) -> Image.Image:
    """The image with its pixels, by TurboJPEG: the library that Pillow decodes with, and the same pixels, but it tells
    the warnings that Pillow keeps to itself. What it cannot decode is left to Pillow.

    Bytes that are lost, replaced or cut off mostly leave too little or too much data for the pixels. Where they leave
    the right amount, nothing can be told: the format has no checksum.
    """
    if image.mode == "CMYK" and "adobe" not in image.info:
        raise UnreadableImageError("CMYK without Adobe's mark, so whether it is inverted is unknown; save it as RGB")
    found = _by_turbojpeg(content, image.mode)
    if isinstance(found, str) and (surplus := _SURPLUS.fullmatch(found)) and int(surplus[1]) <= _PADDING:
        end = content.rfind(_JPEG_END)
        found = _by_turbojpeg(content[: end - int(surplus[1])] + content[end:], image.mode)  # what else is wrong
    if isinstance(found, str):
        image.load()  # may say more
        if found.startswith(_JPEG_DAMAGE):
            raise UnreadableImageError(f"damaged: {found}")
        return image
    if image.info.get("progressive") and _lacks_scans(content):
        raise UnreadableImageError("damaged: the last scans of a progressive JPEG are missing")
    if image.mode == "CMYK":
        return image
    decoded = Image.fromarray(found)
    decoded.info = image.info
    return decoded


def _lacks_scans(content: bytes) -> bool:
    """Whether not every coefficient of every component of a whole progressive JPEG comes to its last bit."""
    missing: set[tuple[int, int]] = set()
    place = 2
    while (found := _JPEG_MARKER.search(content, place)) and found[0] != _JPEG_END:
        place = found.start()
        if found[0] == b"\xff\xc2":  # the frame
            missing = {(content[place + 10 + 3 * n], order) for n in range(content[place + 9]) for order in range(64)}
        elif found[0] == b"\xff\xda":  # a scan
            end = place + 5 + 2 * content[place + 4]
            first, last, bits = content[end : end + 3]
            if bits & 15 == 0:
                missing -= {(name, k) for name in content[place + 5 : end : 2] for k in range(first, last + 1)}
        place += 2 + int.from_bytes(content[place + 2 : place + 4])
    return bool(missing)


def _by_turbojpeg(content: bytes, mode: str) -> np.ndarray | str:
    """Pixels [H, W] of grey, else [H, W, channels]; or the first or last thing wrong with it."""
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(content, _JPEG_COLOURS[mode], strict=True)
    except ValueError as err:
        return str(err)
    return pixels[..., 0] if mode == "L" else pixels


def _check_png(image: Image.Image, content: bytes) -> None:
    """Refuses a decoded PNG with a wrong checksum or without its end; Pillow skips checksums of pixel data."""
    place, kind, data = 8, b"", []
    view = memoryview(content)
    while kind != b"IEND":
        end = place + 8 + int.from_bytes(view[place : place + 4])
        kind = bytes(view[place + 4 : place + 8])
        if end + 4 > len(content):
            raise UnreadableImageError("truncated: it has no end")
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise UnreadableImageError(f"damaged: wrong checksum of {kind!r}")
        if kind == b"IDAT":
            data.append(view[place + 8 : end])
        place = end + 4
    width, height = image.size
    interlaced = content[28]
    if interlaced or not any(image.crop((0, height - 1, width, height)).tobytes()):  # as Pillow leaves missing rows
        passes = _INTERLACED if interlaced else ((0, 0, 1, 1),)
        bits = content[24] * _PNG_CHANNELS[content[25]]
        sides = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
        needed = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sides if columns > 0)
        if not _inflates_to(needed, data):
            raise UnreadableImageError("damaged: pixels are missing at its end")


def _inflates_to(needed: int, data: list[memoryview]) -> bool:
    """Whether compressed data are at least that many bytes; not more memory than for some of them at a time."""
    inflate, length = zlib.decompressobj(), 0
    for piece in data:
        for start in range(0, len(piece), 2**16):
            length += len(inflate.decompress(piece[start : start + 2**16]))
            if length >= needed:
                return True
    return False


def _check_line_ends(image: Image.Image, content: bytes) -> None:
    """Refuses a PPM whose line ends were made those of Windows: its pixels would begin one byte too early."""
    start = image.tile[0].offset if isinstance(image, ImageFile.ImageFile) else 0
    if content[1:2] in b"456" and content[start - 1 : start + 1] == b"\r\n":
        raise UnreadableImageError("damaged: line ends of a text file (CR LF) in a binary PPM")


def _check_all_rows(image: Image.Image) -> None:
    """Refuses a file that does not say where all of its pixels are; Pillow would leave the others black."""
    told = [tile.extents for tile in getattr(image, "tile", ()) if tile.extents]
    reached = (max((x for _, _, x, _ in told), default=0), max((y for _, _, _, y in told), default=0))
    # sorted: of a TIFF that lies on its side the size is the upright one, its tiles are not
    if told and any(far < side for far, side in zip(sorted(reached), sorted(image.size), strict=True)):
        raise UnreadableImageError("pixels are missing at its end")


def _check_colours(image: Image.Image) -> None:
    """Refuses what Pillow reads without an error and with wrong colours."""
    if image.format and image.mode == "P" and not image.getpalette():
        raise UnreadableImageError("it has a palette of no colours")
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANES) == 2 and tags.get(_COMPRESSION, 1) == 1 and max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8:
        raise UnreadableImageError("planes of more than 8 bits, uncompressed; save it with interleaved channels")


def _transparent_in_8_bits(image: Image.Image) -> int | tuple[int, ...] | None:
    """The transparent colour of a PNG whose samples Pillow makes 8 bits deep; it leaves the colour as the file has it.

    None for all others. Of 16-bit colours the upper 8 bits are compared, as they are all that is kept.
    """
    colour = image.info.get("transparency")
    tiles = getattr(image, "tile", ())  # gone once the pixels are decoded
    if image.format != "PNG" or colour is None or not tiles:
        return None
    stored = tiles[0].args
    if stored in _STEPS_OF_GREY and isinstance(colour, int):
        return colour * _STEPS_OF_GREY[stored]
    if stored == "RGB;16B" and isinstance(colour, tuple):
        return tuple(value >> 8 for value in colour)
    return None


def _to_8_bits(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})
    signed = _SIGNED in np.atleast_1d(tags.get(_SAMPLE_FORMAT, ()))  # Pillow reads 8 signed bits as unsigned ones
    if signed or image.mode == "F" or (image.mode == "I" and image.format != "PPM"):  # Pillow scales a PGM to 16 bits
        raise UnreadableImageError(
            "signed, 32-bit or floating-point pixels, whose range is unknown; save it with 8 or 16 bits, unsigned"
        )
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    deep = np.asarray(image).astype(np.int64)
    grey = np.clip(deep >> (bits - 8), 0, 255)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        grey = 255 - grey
    if (hidden := image.info.get("transparency")) is not None:
        grey[deep == hidden] = 0
    plain = Image.fromarray(grey.astype(np.uint8))
    plain.info = {name: value for name, value in image.info.items() if name in ("exif", "xmp")}
    return plain


def _without_alpha(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        if image.mode == "RGB" and not isinstance(image, ImageFile.ImageFile):
            return image  # of no file any more: nothing to copy
        return image.convert("RGB")
    if image.mode == "La":  # Pillow takes the premultiplied modes one step at a time
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")


def read_file(path: Path) -> bytes:
    """The file's bytes.

    Raises UnreadableImageError when it is gone, no regular file, larger than 256 MiB, or may not be read.
    """
    try:
        return read_limited(path, MAX_FILE_BYTES)
    except OSError as err:
        raise UnreadableImageError(err.strerror or str(err), path) from err


def load_image(path: Path) -> Image.Image:
    """Read and decode one file to RGB. Raises UnreadableImageError."""
    return decode(read_file(path), path)


def encode_jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """JPEG bytes of an RGB array [H, W, 3] uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _one_line(err: Exception) -> str:
    return (str(err) or type(err).__name__).splitlines()[0][:200]
