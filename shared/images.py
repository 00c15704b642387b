"""Opening images that nobody vouched for: one hash, one decoder, one typed error, never a loop."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shared.errors import DgreidError
from shared.files import read_limited

MAX_PIXELS = 50_000_000  # a person crop has under a million; far larger ones are decompression bombs
MAX_SIDE = 30_000  # pixels
MAX_FILE_BYTES = 256 * 2**20  # an uncompressed image of MAX_PIXELS fits
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
_ORIENTATION = 0x0112  # EXIF tag
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 259, 262, 284, 339  # TIFF tags
_SIGNED = 2  # a sample format
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


def is_plain_jpeg(image: Image.Image) -> bool:
    """Whether `decode` returns the pixels of an opened image as a JPEG library gives them: RGB and not turned."""
    return image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(_ORIENTATION, 1) == 1


def decode(content: bytes, path: Path | str | None = None, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a whole image to RGB, 8 bits a channel.

    The first frame of several, its EXIF orientation applied, transparency composited onto black. 16-bit channels keep
    their upper 8 bits; CMYK is converted without colour profiles. Every size and box of the project is in pixels of
    this image.

    Raises UnreadableImageError for empty, truncated, unknown or over-large content (the size is read from the
    header, before any pixel is decoded), for grey images of signed, 32-bit or float numbers, whose range of
    values no file states, and for what Pillow would show in wrong colours without an error.
    """
    with opened(content, path, max_pixels=max_pixels) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image, *, upright: bool = True) -> Image.Image:
    """The RGB image of an `opened` one, as `decode` returns it; for use inside the `with` block of `opened`.

    upright: apply the EXIF orientation.
    """
    transparent = _transparent_in_8_bits(image)
    _check_all_rows(image)
    image.load()
    _check_colours(image)
    if transparent is not None:
        image.info["transparency"] = transparent
    plain = _to_8_bits(image)
    return _without_alpha(ImageOps.exif_transpose(plain) if upright else plain)


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
