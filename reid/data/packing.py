"""Packed images: what a data set's images are at the model's input size, decoded once, in a memory-mapped file.

    <runs>/cache/images/<data set>-<images>x<height>x<width>-<interpolation>-<key>.npy

The key is a hash of the ids of the images in their order, so a data set that is rescanned with other images gets
another file. A file is NumPy's, one record an image: `size`, the original height and width in pixels, and `pixels`,
uint8 [3, height, width]. It appears whole or not at all; one that is missing or damaged is made again.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from reid.data.decoding import changed_since, load_scanned_pixels, resized_pixels
from reid.data.packed import PackedImages, record_type
from reid.data.transforms import Interpolation
from shared.datasets import locate
from shared.files import atomic_path
from shared.image_cache import pack_name, size_told
from shared.images import UnreadableImageError
from shared.manifest import manifest_columns
from shared.object_storage import THREADS, remote
from shared.progress import Progress
from shared.schemas import ImageStatus
from shared.workspace import Workspace

log = logging.getLogger(__name__)

SPARE_BYTES = 2 * 2**30  # of the disk that are left free
CHUNK = 16  # images decoded by a thread at a time
SYNCED_BYTES = 64 * 2**20  # written before the disk is asked to keep them
_FORMAT = "dgreid.packed.1"


def packed_images(
    datasets: Sequence[str],
    paths: Sequence[str],
    *,
    workspace: Workspace,
    size: tuple[int, int],
    mode: Interpolation,
    limit_bytes: int,
    make: bool = True,
) -> PackedImages | None:
    """The packed images of some files of data sets, decoded now as far as they are not packed yet.

    All images of the files' splits are packed, for whoever asks next, unless fewer than half of them are asked for.

    Args:
        datasets: the data set of each image.
        paths: relative to its folder.
        size: height and width in pixels.
        limit_bytes: of all packs together; SPARE_BYTES of the disk stay free, too.
        make: False only looks for what another process has made.

    Returns None where the limit leaves no room, or with `make` False where a pack is missing.
    Raises DataError when a manifest is missing, DgreidError naming an image that can no longer be read or has changed
    since it was scanned, or when the cache cannot be written.
    """
    if not len(paths) or limit_bytes <= 0:
        return None
    of_each = pc.dictionary_encode(_as_text(datasets))
    names, which = of_each.dictionary.to_pylist(), of_each.indices.to_numpy()
    wanted, packs = _as_text(paths), []
    pack_of, records = np.empty(len(paths), np.int32), np.empty(len(paths), np.int64)
    for number, name in enumerate(names):
        places = np.flatnonzero(which == number)
        plan = _plan(name, wanted.take(pa.array(places)), workspace, size, mode)
        pack = _opened(plan)
        if pack is None and make:
            pack = _make(plan, limit_bytes)
        if pack is None:
            return None
        packs.append(pack)
        pack_of[places], records[places] = number, pc.index_in(wanted.take(pa.array(places)), plan.paths).to_numpy()
    return PackedImages(tuple(packs), pack_of, records)


class Processes(Protocol):
    """As much of Lightning's Fabric as is needed here."""

    @property
    def is_global_zero(self) -> bool: ...

    def barrier(self) -> None: ...


def packed_by_first(
    processes: Processes, datasets: Sequence[str], paths: Sequence[str], **given: Any
) -> PackedImages | None:
    """`packed_images` for several processes: the first one makes what is missing, the others wait for it."""
    if processes.is_global_zero:
        packed_images(datasets, paths, **given)
    processes.barrier()
    return packed_images(datasets, paths, make=False, **given)


@dataclass(frozen=True)
class _Plan:
    """One pack: images of a data set in the order of its records."""

    file: Path
    root: Path
    dataset: str
    paths: pa.Array
    image_ids: pa.Array
    size: tuple[int, int]
    mode: Interpolation

    @property
    def kind(self) -> np.dtype:
        return record_type(self.size)

    @property
    def size_bytes(self) -> int:
        return len(self.paths) * self.kind.itemsize


def _as_text(column: Any) -> pa.Array:
    """A sequence of text as an Arrow array, without a detour where it holds one."""
    values = getattr(column, "values", None)
    if not isinstance(values, pa.Array):
        return pa.array(column, pa.string())
    return values.cast(pa.string()) if pa.types.is_dictionary(values.type) else values


def _plan(dataset: str, wanted: pa.Array, workspace: Workspace, size: tuple[int, int], mode: Interpolation) -> _Plan:
    table = manifest_columns(workspace.manifest(dataset), ["split", "path", "image_id", "status"])
    table = table.filter(pc.equal(table["status"], ImageStatus.OK.value))
    asked = pc.is_in(table["path"], wanted)
    splits = pc.unique(table["split"].filter(asked))
    of_splits = table.filter(pc.is_in(table["split"], splits))
    chosen = table.filter(asked) if 2 * len(wanted) < len(of_splits) else of_splits
    paths, ids = chosen["path"].combine_chunks(), chosen["image_id"].combine_chunks()
    digest = hashlib.sha256(f"{_FORMAT} {torch.__version__}\n".encode())
    digest.update("\n".join(ids.to_pylist()).encode())
    file = workspace.image_cache / pack_name(dataset, len(ids), size, mode, digest.hexdigest()[:16])
    return _Plan(file, locate(dataset, workspace.data_root), dataset, paths, ids, size, mode)


def _opened(plan: _Plan) -> np.memmap | None:
    try:
        found: np.memmap = np.load(plan.file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        log.warning("%s is damaged (%s): rebuilding it", plan.file, err)
        return None
    if found.dtype != plan.kind or found.shape != (len(plan.paths),):
        log.warning("%s holds other images: rebuilding it", plan.file)
        return None
    os.utime(plan.file)  # what `dgreid cache` shows as its last use
    return found


def _make(plan: _Plan, limit_bytes: int) -> np.memmap | None:
    """Decode all images in parallel; None without room for them."""
    folder = plan.file.parent
    taken = sum(path.stat().st_size for path in folder.glob("*.npy") if path != plan.file)
    existing = next(parent for parent in folder.parents if parent.exists())
    room = min(limit_bytes - taken, shutil.disk_usage(existing).free - SPARE_BYTES)
    count, (height, width) = len(plan.paths), plan.size
    told = f"{count:,} images of {plan.dataset} at {height} x {width} are {size_told(plan.size_bytes)}"
    if plan.size_bytes > room:
        log.warning(
            "%s, and the cache has room for %s: they are decoded in every pass (room: data.cache_gib, or "
            "`dgreid cache --clear`)",
            told,
            size_told(max(room, 0)),
        )
        return None
    log.info("%s: decoded once, into %s", told, plan.file)
    with atomic_path(plan.file) as temporary:
        np.lib.format.open_memmap(temporary, mode="w+", dtype=plan.kind, shape=(len(plan.paths),))
        with temporary.open("r+b") as file:
            size = temporary.stat().st_size
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, not in the middle
            _fill(file.fileno(), size - plan.size_bytes, plan)
    return _opened(plan)


def _fill(file: int, first: int, plan: _Plan) -> None:
    """Write all records to an open file, from byte `first`: many in one call, as pages of a map are slow to write."""
    paths, ids, each = plan.paths.to_pylist(), plan.image_ids.to_pylist(), plan.kind.itemsize

    def decode(start: int) -> int:
        places = range(start, min(start + CHUNK, len(paths)))
        records = np.empty(len(places), plan.kind)
        for place, record in zip(places, records, strict=True):
            pixels = load_scanned_pixels(plan.root / paths[place], ids[place])
            record["size"] = pixels.shape[1:]
            record["pixels"] = resized_pixels(pixels, plan.size, plan.mode).numpy()
        _write_at(file, records.view(np.uint8), first + start * each)
        return len(places)

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if remote(plan.root):
        threads = max(threads, THREADS)
    with Progress(f"pack {plan.dataset}", len(paths)) as progress, ThreadPool(threads) as pool:
        waiting = 0
        try:
            for done in pool.imap_unordered(decode, range(0, len(paths), CHUNK)):
                progress.advance(done)
                waiting += done * each
                if waiting >= SYNCED_BYTES:  # the disk works while the threads decode
                    os.fsync(file)
                    waiting = 0
        except UnreadableImageError as err:
            raise changed_since(err) from err
        finally:  # no thread writes once the file is closed
            pool.terminate()
            pool.join()


def _write_at(file: int, content: np.ndarray, place: int) -> None:
    view = content.data
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written
