"""Images of data sets by image_id, decoded and encoded again: no byte of a file reaches the browser as it is."""

import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import BoundedSemaphore, get_ident

from PIL import Image

from shared.images import UnreadableImageError, decode, image_id_of, read_file
from shared.schemas import ManifestRow

THUMB_SIZE = (192, 192)  # pixels
FULL_SIZE = (2048, 2048)
QUALITY = {THUMB_SIZE: 82, FULL_SIZE: 95}
JPEG_END = b"\xff\xd9"
DECODING = 2  # images at the same time: a large one takes 150 MB


class Pictures:
    """JPEG bytes of images that a manifest lists. Thumbnails are kept on disk.

    Args:
        folders: data set -> its folder.
        cache: folder of the thumbnails.
    """

    def __init__(self, folders: Mapping[str, Path], cache: Path) -> None:
        self._folders, self._cache = folders, cache
        self._decoding = BoundedSemaphore(DECODING)

    def thumbnail(self, row: ManifestRow) -> bytes:
        """At most THUMB_SIZE. Raises UnreadableImageError when the image is gone, was changed, or cannot be decoded."""
        path = self._cache / row.image_id[:2] / f"{row.image_id}.jpg"
        with suppress(OSError):
            if (kept := path.read_bytes()).endswith(JPEG_END):
                return kept
        content = self._jpeg(row, THUMB_SIZE)
        with suppress(OSError):  # a full disk costs speed, not the page
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{get_ident()}.tmp")
            unfinished.write_bytes(content)  # not synced, for speed: what a power cut leaves is made again
            unfinished.replace(path)
        return content

    def full(self, row: ManifestRow) -> bytes:
        """At most FULL_SIZE. Raises UnreadableImageError as `thumbnail`."""
        return self._jpeg(row, FULL_SIZE)

    def _jpeg(self, row: ManifestRow, size: tuple[int, int]) -> bytes:
        path = self._folders[row.dataset] / row.path
        content = read_file(path)
        if image_id_of(content) != row.image_id:
            raise UnreadableImageError("the file has changed since the data set was scanned", path)
        with self._decoding:
            image = decode(content, path)
        image.thumbnail(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY[size])
        return buffer.getvalue()
