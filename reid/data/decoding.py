"""One image file -> its pixels, and a file whose bytes were scanned before -> its pixels in half the time."""

import struct
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid.data.transforms import Interpolation
from shared.errors import DgreidError
from shared.images import UnreadableImageError, decode, image_id_of, load_image, read_file

_FRAMES = {0xC0, 0xC1, 0xC2}  # markers of a JPEG: baseline, extended and progressive
_HARMLESS = {0xC4, 0xDB, 0xDD, 0xE0, 0xFE}  # tables, restart interval, JFIF, comment
_PNG_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tIME", b"sRGB", b"gAMA", b"cHRM"}  # no other changes what is shown
_RGB_PNG = b"\x08\x02\x00\x00\x00"  # 8 bits, three channels, not interlaced


def load_pixels(path: Path) -> Tensor:
    """RGB, uint8 [3, H, W], as `shared.images.load_image` reads it. Raises UnreadableImageError naming the file."""
    return _channels_first(np.array(load_image(path)))


def load_scanned_pixels(path: Path, image_id: str) -> Tensor:
    """The pixels that `load_pixels` gives of a file that decoded without an error when it was scanned.

    OpenCV decodes the usual JPEG, PNG and BMP fastest, a JPEG with the same library and options, but says nothing
    about damaged ones: `image_id` vouches for the bytes. Raises UnreadableImageError when the file is gone or has
    other bytes.
    """
    content = read_file(path)
    if image_id_of(content) != image_id:
        raise UnreadableImageError("its bytes are not those that were scanned", path)
    if _is_bare(content):
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        found = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        if found is not None:
            return _channels_first(found)
    return _channels_first(np.array(decode(content, path)))


def _is_bare(content: bytes) -> bool:
    """Whether a file holds one picture of three 8-bit channels and nothing that changes how it is shown, such as an
    orientation (EXIF, XMP), another colour space or a transparent colour."""
    if content.startswith(b"\xff\xd8"):
        return _is_bare_jpeg(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _is_bare_png(content)
    if content.startswith(b"BM"):
        return _is_bare_bmp(content)
    return False


def _is_bare_jpeg(content: bytes) -> bool:
    """Adobe's mark (other colour spaces) and further pictures are markers of their own, too."""
    place = 2
    while content[place : place + 1] == b"\xff" and place + 10 <= len(content):
        kind, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4])
        if kind in _FRAMES:
            return content[place + 4] == 8 and content[place + 9] == 3
        if kind not in _HARMLESS:
            return False
        place += 2 + length
    return False


def _is_bare_png(content: bytes) -> bool:
    """All chunks are looked at: an orientation may come after the pixels."""
    if content[12:16] != b"IHDR" or content[24:29] != _RGB_PNG:
        return False
    place = 8
    while (kind := content[place + 4 : place + 8]) in _PNG_CHUNKS:
        if kind == b"IEND":
            return True
        place += 12 + int.from_bytes(content[place : place + 4])
    return False


def _is_bare_bmp(content: bytes) -> bool:
    """The header of Windows 3: 24 bits, not compressed, from the bottom to the top, no table of colours."""
    if len(content) < 54:
        return False
    first, header, width, height, planes, bits, kind = struct.unpack("<10xIIiiHHI", content[:34])
    whole = width > 0 and height > 0 and len(content) >= 54 + (3 * width + 3) // 4 * 4 * height
    return bool((first, header, planes, bits, kind) == (54, 40, 1, 24, 0) and whole)


def resized_pixels(pixels: Tensor, size: tuple[int, int], mode: Interpolation) -> Tensor:
    """uint8 [3, H, W] resized to `size` = (height, width).

    Torch's antialiased kernel for bytes is Pillow's resize with 16-bit weights: one pixel in a hundred differs by one
    of 255 steps, and it takes a quarter of the time.
    """
    return F.interpolate(pixels[None], size, mode=mode, antialias=True)[0]


def changed_since(err: UnreadableImageError) -> DgreidError:
    """What an image that can no longer be read means for a job that knows it from a manifest."""
    return DgreidError(
        f"an image changed after the data set was scanned: {err.what} [{err.path}]",
        fix="restore the file, or scan the data set again (dgreid manifest <name>) and start a new run",
    )


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)
