"""One image file -> its pixels, and a file whose bytes were scanned before -> its pixels in half the time."""

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from reid.data.transforms import Interpolation
from shared.errors import DgreidError
from shared.images import UnreadableImageError, image_id_of, is_plain_jpeg, opened, read_file, to_rgb

_FRAMES = {0xC0, 0xC1, 0xC2}  # markers of a JPEG: baseline, extended and progressive
_HARMLESS = {0xC4, 0xDB, 0xDD, 0xE0, 0xFE}  # tables, restart interval, JFIF, comment


def load_pixels(path: Path) -> Tensor:
    """RGB, uint8 [3, H, W], as `shared.images.load_image` reads it. Raises UnreadableImageError naming the file.

    Pillow reads every header. A plain JPEG is then decoded by torchvision, the same library in half the time.
    """
    content = read_file(path)
    with opened(content, path) as image:
        if is_plain_jpeg(image):
            try:
                pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
                return pixels
            except RuntimeError:  # Pillow reports what is wrong with it
                pass
        return _channels_first(np.array(to_rgb(image)))


def load_scanned_pixels(path: Path, image_id: str) -> Tensor:
    """The pixels that `load_pixels` gives of a file that decoded without an error when it was scanned.

    OpenCV decodes a plain JPEG fastest, with the same library and options, but says nothing about a damaged one:
    `image_id` vouches for the bytes. Raises UnreadableImageError when the file is gone or has other bytes.
    """
    content = read_file(path)
    if image_id_of(content) != image_id:
        raise UnreadableImageError("its bytes are not those that were scanned", path)
    if _is_bare_jpeg(content):
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        found = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        if found is not None:
            return _channels_first(cv2.cvtColor(found, cv2.COLOR_BGR2RGB))
    with opened(content, path) as image:
        return _channels_first(np.array(to_rgb(image)))


def _is_bare_jpeg(content: bytes) -> bool:
    """Whether a file is a JPEG of three 8-bit components with nothing in its header that changes what is shown: no
    EXIF or XMP (orientation), no Adobe mark (other colour spaces), no further pictures."""
    place = 2
    while content[:2] == b"\xff\xd8" and content[place : place + 1] == b"\xff" and place + 10 <= len(content):
        kind, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4])
        if kind in _FRAMES:
            return content[place + 4] == 8 and content[place + 9] == 3
        if kind not in _HARMLESS:
            return False
        place += 2 + length
    return False


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
