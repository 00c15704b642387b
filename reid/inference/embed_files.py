"""Image files and video crops into a folder of embeddings: resumable, and a broken image costs only itself."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.inference.embeddings import EmbeddingStore, Kind, shard_files, writing
from reid.inference.encoder import PersonEncoder
from reid.inference.video import Crop
from shared.errors import DataError
from shared.files import write_text
from shared.images import UnreadableImageError, decode, image_id_of, read_file
from shared.object_storage import remote
from shared.progress import Progress
from shared.schemas import ImageStatus, ManifestRow
from shared.terminal import printable

SHARD_ROWS = 4096  # what a killed process loses at most
SUFFIXES = frozenset(".jpg .jpeg .png .bmp .webp .tif .tiff .ppm .pgm".split())
UNREADABLE_FILE = "unreadable.txt"


@dataclass(frozen=True)
class ImageFile:
    """One file to embed; what is not known of it is None. path: relative to `folder`, POSIX."""

    folder: Path
    path: str
    dataset: str | None = None
    split: str | None = None
    identity: str | None = None
    camera: str | None = None

    @property
    def key(self) -> str:
        return key_of(self.folder / self.path)


@dataclass
class Summary:
    """What one pass did. unreadable: key -> reason."""

    embedded: int = 0
    unchanged: int = 0
    replaced: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def key_of(path: Path) -> str:
    if there := remote(path):
        return printable(there)
    return printable(os.path.abspath(path))  # noqa: PTH100 (Path.resolve would follow links)


def files_in(folder: Path, camera: str | None = None) -> list[ImageFile]:
    """Images below a folder, by their suffix, sorted; links to folders are not followed.

    Raises DataError when there are none.
    """
    if there := remote(folder):
        paths = list(there.files())
    else:
        paths = [
            (Path(place) / name).relative_to(folder).as_posix() for place, _, names in os.walk(folder) for name in names
        ]
    found = [ImageFile(folder, path, camera=camera) for path in paths if PurePosixPath(path).suffix.lower() in SUFFIXES]
    if not found:
        raise DataError(
            "there are no images here", path=folder, fix=f"name a folder with {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(found, key=lambda file: file.path)


def files_of(rows: Iterable[ManifestRow], folder: Path) -> list[ImageFile]:
    """The readable images of a manifest, with people and cameras by the names that the data set has for them."""

    def name(given: str | None, number: int | None) -> str | None:
        return given if given is not None or number is None else str(number)

    found = {
        row.path: ImageFile(
            folder,
            row.path,
            row.dataset,
            row.split,
            name(row.identity_name, row.identity),
            name(row.camera_name, row.camera),
        )
        for row in rows
        if row.status == ImageStatus.OK
    }
    return list(found.values())


def embed_files(
    files: list[ImageFile],
    encoder: PersonEncoder,
    out: Path,
    *,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 64,
    workers: int = 2,
) -> Summary:
    """Embed the images that `out` does not hold yet, or holds another state of; the rest is not read.

    A file that changed replaces its row. Files that cannot be read are in the summary and in <out>/unreadable.txt; they
    are tried again next time.

    Args:
        out: folder of embeddings, see reid.inference.embeddings.
        workers: decoding threads.
    Raises:
        DataError: `out` holds another model's features, or is damaged or in use.
        DgreidError: it cannot be written.
    """
    summary = Summary()
    with writing(out, _kind(encoder, dtype)) as writer:
        known = _known_states(out)
        wanted = [file for file in files if known.get(file.key) != _state(file.folder / file.path)]
        summary.unchanged = len(files) - len(wanted)
        before = len(shard_files(out))
        with Progress(f"embed into {out.name}", len(wanted)) as progress:
            rows = _Rows(writer.add, encoder, batch_size)
            for file, loaded in _loaded(wanted, encoder, workers, ahead=2 * batch_size):
                if isinstance(loaded, UnreadableImageError):
                    summary.unreadable[file.key] = loaded.reason
                    progress.advance(failure="unreadable")
                    continue
                rows.put(*loaded)
                summary.embedded += 1
                progress.advance()
            rows.end()
        stale = {file.key for file in wanted if file.key in known and file.key not in summary.unreadable}
        summary.replaced = writer.remove(stale, before=before) if stale else 0
        _tell_unreadable(out, summary)
    return summary


def embed_crops(
    crops: Iterable[Crop | tuple[str, str]],
    total: int,
    source: Path,
    encoder: PersonEncoder,
    out: Path,
    *,
    camera: str | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 64,
) -> Summary:
    """Embed the detections of a video, as reid.inference.video.read_crops gives them; frames that are there already
    are kept. Arguments and errors as for `embed_files`.

    Args:
        crops: in order of frames; a pair is something that could not be read, and why.
        total: how many there are, for the progress.
    """
    summary = Summary()
    size, modified = _state(source) or (0, 0)
    with writing(out, _kind(encoder, dtype)) as writer:
        known = _known_states(out)
        before = len(shard_files(out))
        stale: set[str] = set()
        with Progress(f"embed {source.name}", total, unit="detections") as progress:
            rows = _Rows(writer.add, encoder, batch_size)
            for crop in crops:
                if not isinstance(crop, Crop):
                    summary.unreadable[crop[0]] = crop[1]
                    progress.advance(failure="unreadable")
                    continue
                key = f"{key_of(source)}#{crop.frame}.{crop.number}"
                image_id = image_id_of(str(crop.pixels.shape).encode() + crop.pixels.tobytes())
                if known.get(key) == (size, modified):
                    summary.unchanged += 1
                else:
                    if key in known:
                        stale.add(key)
                    facts = {
                        "key": key,
                        "image_id": image_id,
                        "path": source.name,
                        "folder": str(source.parent),
                        "camera": camera if camera is not None else crop.camera,
                        "frame": crop.frame,
                        "time_s": crop.time_s,
                        "track": crop.track,
                        "box": list(crop.box),
                        "size_bytes": size,
                        "modified_ns": modified,
                    }
                    rows.put(facts, encoder.preprocessed(crop.pixels))
                    summary.embedded += 1
                progress.advance()
            rows.end()
        summary.replaced = writer.remove(stale, before=before) if stale else 0
        _tell_unreadable(out, summary)
    return summary


class _Rows:
    """Collects images, encodes them in batches and writes a shard every SHARD_ROWS."""

    def __init__(self, write: Any, encoder: PersonEncoder, batch_size: int) -> None:
        self._write, self._encoder, self._batch_size = write, encoder, batch_size
        self._facts: list[dict[str, Any]] = []
        self._images: list[Tensor] = []
        self._features: list[NDArray[np.float32]] = []
        self._visibility: list[NDArray[np.float32]] = []

    def put(self, facts: dict[str, Any], image: Tensor) -> None:
        self._facts.append(facts)
        self._images.append(image)
        if len(self._images) == self._batch_size:
            self._encode()
        if len(self._facts) >= SHARD_ROWS and not self._images:
            self._flush()

    def end(self) -> None:
        if self._images:
            self._encode()
        if self._facts:
            self._flush()

    def _encode(self) -> None:
        features, visibility = self._encoder.encode(torch.stack(self._images))
        self._features.append(features)
        self._visibility.append(visibility)
        self._images.clear()

    def _flush(self) -> None:
        self._write(self._facts, np.concatenate(self._features), np.concatenate(self._visibility))
        for buffer in (self._facts, self._features, self._visibility):
            buffer.clear()


Loaded = tuple[dict[str, Any], Tensor] | UnreadableImageError


def _loaded(
    files: list[ImageFile], encoder: PersonEncoder, workers: int, *, ahead: int
) -> Iterator[tuple[ImageFile, Loaded]]:
    """Facts and resized pixels of the files, in order; decoded by threads, at most `ahead` of them waiting."""
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode") as pool:
        waiting: list[tuple[ImageFile, Future[Loaded]]] = []
        for file in files:
            waiting.append((file, pool.submit(_load, file, encoder)))
            if len(waiting) >= ahead:
                first, future = waiting.pop(0)
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _load(file: ImageFile, encoder: PersonEncoder) -> Loaded:
    path = file.folder / file.path
    state = _state(path)
    try:
        content = read_file(path)
        image = encoder.preprocessed(decode(content, path))
    except UnreadableImageError as err:
        return err
    size, modified = state or (0, 0)
    facts = {name: getattr(file, name) for name in ("dataset", "split", "identity", "camera")}
    names = {"key": file.key, "path": printable(file.path), "folder": printable(file.folder)}
    return {
        **facts,
        **names,
        "image_id": image_id_of(content),
        "size_bytes": size,
        "modified_ns": modified,
    }, image


def _kind(encoder: PersonEncoder, dtype: Literal["float16", "float32"]) -> Kind:
    return Kind(encoder.model_hash, encoder.parts, encoder.feature_dim, dtype)


def _known_states(out: Path) -> dict[str, tuple[int, int]]:
    """Key -> size and modification time of what is there."""
    if not shard_files(out):
        return {}
    columns = [EmbeddingStore(out).facts.column(name).to_pylist() for name in ("key", "size_bytes", "modified_ns")]
    return {key: (size, modified) for key, size, modified in zip(*columns, strict=True)}


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _tell_unreadable(out: Path, summary: Summary) -> None:
    path = out / UNREADABLE_FILE
    if summary.unreadable:
        lines = (f"{printable(key)}\t{printable(reason)}\n" for key, reason in summary.unreadable.items())
        write_text(path, "".join(lines))
    else:
        path.unlink(missing_ok=True)
