"""Opening images that nobody vouched for: one hash, one decoder, one typed error, never a loop."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shared.errors import DgreidError

MAX_PIXELS = 50_000_000  # a person crop has under a million; far larger ones are decompression bombs
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")


class UnreadableImageError(DgreidError):
    """The bytes are no image that we accept."""

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
            yield image
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as err:
        raise UnreadableImageError("a decompression bomb", path) from err
    except UnidentifiedImageError as err:
        raise UnreadableImageError("not an image of a known format", path) from err
    except Exception as err:
        raise UnreadableImageError(_one_line(err), path) from err


def decode(content: bytes, path: Path | str | None = None, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a whole image to RGB, its EXIF orientation applied, transparency dropped onto black.

    Raises UnreadableImageError for empty, truncated, unknown or over-large content (the size is read from the
    header, before any pixel is decoded).
    """
    with opened(content, path, max_pixels=max_pixels) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """The RGB image of an `opened` one, as `decode` returns it; for use inside the `with` block of `opened`."""
    image.load()
    return ImageOps.exif_transpose(image).convert("RGB")


def read_file(path: Path) -> bytes:
    """The file's bytes. Raises UnreadableImageError when it is gone or may not be read."""
    try:
        return path.read_bytes()
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
