"""The remaining work: manifest minus finished rows, read from disk in small batches, each file checked by its hash."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path

from shared.images import UnreadableImageError, image_id_of, read_file
from shared.object_storage import THREADS, remote
from shared.schemas import ImageStatus, ManifestRow


@dataclass(frozen=True)
class Item:
    """One image and the parts that need rows."""

    row: ManifestRow
    parts: frozenset[str]
    content: bytes = b""
    unreadable: str = ""  # why it must not be sent


@dataclass
class Batch:
    to_send: list[Item] = field(default_factory=list)
    unreadable: list[Item] = field(default_factory=list)
    size_bytes: int = 0


class Backlog:
    """The remaining images of a manifest, in its order; identical files count once.

    Args:
        parts: every image needs a row for each of them.
        finished: parts that need no further question, by image_id.
    """

    def __init__(self, parts: Sequence[str], finished: Mapping[str, frozenset[str]]) -> None:
        self._parts, self._finished = frozenset(parts), finished
        self._seen: set[str] = (
            set()
        )  # with `finished` the only thing that grows with the data set: under 200 bytes per image
        self.done_before = 0

    def items(self, rows: Iterable[ManifestRow]) -> Iterator[Item]:
        for row in rows:
            if row.image_id in self._seen:
                continue
            self._seen.add(row.image_id)
            if wanted := self._parts - self._finished.get(row.image_id, frozenset()):
                yield Item(row, wanted)
            else:
                self.done_before += 1


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
        yield from (_read(item, root) for item in items)
        return
    waiting: deque[AsyncResult[Item]] = deque()
    with ThreadPool(THREADS) as pool:
        for item in items:
            waiting.append(pool.apply_async(_read, (item, root)))
            if len(waiting) >= THREADS:
                yield waiting.popleft().get()
        while waiting:
            yield waiting.popleft().get()


def _read(item: Item, root: Path) -> Item:
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
