"""The remaining work: manifest minus finished rows, read from disk in small batches, each file checked by its hash."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from labeler.grounding.answers import ImageAnswer
from shared.errors import DataError
from shared.images import UnreadableImageError, image_id_of, read_file
from shared.manifest import ManifestFile, manifest_columns
from shared.object_storage import THREADS, remote
from shared.schemas import ImageStatus, ManifestRow


@dataclass(frozen=True)
class Item:
    """One image and the parts that need rows."""

    row: ManifestRow
    parts: frozenset[str]
    content: bytes = b""
    unreadable: str = ""  # why it must not be sent


Answered = tuple[Item, ImageAnswer | None]  # None: it was not asked about, `unreadable` says why


@dataclass(frozen=True)
class Request:
    """Asks about a batch of images.

    Args:
        ask: does it; returns the answers that it did not add to `arrived`.
        arrived: what was answered until now and was not taken yet.
    """

    ask: Callable[[], Awaitable[Sequence[Answered]]]
    arrived: list[Answered] = field(default_factory=list)

    async def __call__(self) -> Sequence[Answered]:
        """The answers that were not taken."""
        rest = await self.ask()
        return [*self.take(), *rest]

    def take(self) -> Sequence[Answered]:
        taken = list(self.arrived)
        self.arrived.clear()
        return taken


@dataclass
class Batch:
    to_send: list[Item] = field(default_factory=list)
    unreadable: list[Item] = field(default_factory=list)
    size_bytes: int = 0


class Backlog:
    """The remaining images of a manifest, in its order; identical files count once.

    Of a data set it keeps 4 bytes per row, and 60 more while it is made.

    Args:
        rows: the manifest; an iterator is read into a list.
        parts: every image needs a row for each of them.
        finished: what needs no further question: tables of image_id and parts, where bit i stands for the i-th part.

    Raises DataError for a damaged manifest.
    """

    def __init__(self, rows: Iterable[ManifestRow], parts: Sequence[str], finished: Iterable[pa.RecordBatch]) -> None:
        self._rows = rows if isinstance(rows, ManifestFile) else list(rows)
        self._parts = tuple(parts)
        column = (
            manifest_columns(self._rows.path, ["image_id"])["image_id"]
            if isinstance(self._rows, ManifestFile)
            else pa.chunked_array([[row.image_id for row in self._rows]], pa.string())
        )
        ids, first = np.unique(_fixed(column), return_index=True)
        left = np.full(len(ids), (1 << len(self._parts)) - 1, np.uint32)
        for batch in finished:
            done = _fixed(batch["image_id"])
            place = np.searchsorted(ids, done)
            known = np.flatnonzero(place < len(ids))
            known = known[ids[place[known]] == done[known]]
            left[place[known]] &= ~batch["parts"].to_numpy()[known].astype(np.uint32)
        self._left = np.zeros(len(column), np.uint32)  # by row of the manifest; 0: nothing to ask
        self._left[first] = left
        self.remaining = int(np.count_nonzero(left))  # images
        self.done_before = len(left) - self.remaining

    def __iter__(self) -> Iterator[Item]:
        wanted = self._left != 0
        rows = (
            self._rows.chosen(wanted)
            if isinstance(self._rows, ManifestFile)
            else (self._rows[index] for index in np.flatnonzero(wanted))
        )
        sets: dict[int, frozenset[str]] = {}
        for row, bits in zip(rows, self._left[wanted].tolist(), strict=True):
            if bits not in sets:
                sets[bits] = frozenset(part for number, part in enumerate(self._parts) if bits >> number & 1)
            yield Item(row, sets[bits])


def _fixed(ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """image_ids as bytes [N, 16], without an object for each. Raises DataError for one of another length."""
    if isinstance(ids, pa.ChunkedArray):
        return np.concatenate([_fixed(chunk) for chunk in ids.chunks] or [np.zeros(0, "S16")])
    try:
        fixed = ids.cast(pa.binary()).cast(pa.binary(16))
    except pa.ArrowInvalid as err:
        raise DataError(f"an image_id that does not have 16 characters ({err})", fix="scan the data set again") from err
    return np.frombuffer(fixed.buffers()[1] or b"", "S16")[fixed.offset : fixed.offset + len(fixed)]


def batches(items: Iterable[Item], root: Path, *, max_images: int, max_bytes: int) -> Iterator[Batch]:
    """Read the items' files into batches of at most `max_images` and, beyond the first image, `max_bytes`."""
    batch = Batch()
    for read in _read_all(items, root):
        full = len(batch.to_send) + len(batch.unreadable) >= max_images
        if full or (batch.to_send and batch.size_bytes + len(read.content) > max_bytes):
            yield batch
            batch = Batch()
        (batch.unreadable if read.unreadable else batch.to_send).append(read)
        batch.size_bytes += len(read.content)
    if batch.to_send or batch.unreadable:
        yield batch


def _read_all(items: Iterable[Item], root: Path) -> Iterator[Item]:
    """The items in their order; from an object store THREADS at a time."""
    if not remote(root):
        yield from (read_item(item, root) for item in items)
        return
    waiting: deque[AsyncResult[Item]] = deque()
    with ThreadPool(THREADS) as pool:
        for item in items:
            waiting.append(pool.apply_async(read_item, (item, root)))
            if len(waiting) >= THREADS:
                yield waiting.popleft().get()
        while waiting:
            yield waiting.popleft().get()


def read_item(item: Item, root: Path) -> Item:
    """The item with its file's content, or with the reason why it must not be sent."""
    row = item.row
    if row.status == ImageStatus.UNREADABLE:
        return Item(row, item.parts, unreadable=row.reason or "unreadable when the data set was scanned")
    try:
        content = read_file(root / row.path)
    except UnreadableImageError as err:
        return Item(row, item.parts, unreadable=err.reason)
    if image_id_of(content) != row.image_id:
        return Item(row, item.parts, unreadable="the file changed since the manifest was made")
    return Item(row, item.parts, content)
