"""The manifest of a data set: every image of its layout, hashed and fully decoded once, as typed rows in Parquet."""

import hashlib
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from shared.datasets import Counts, FileRecord, count_splits, locate, resolve_name, scan_dataset
from shared.errors import DataError
from shared.images import UnreadableImageError, decode, image_id_of, read_file
from shared.object_storage import THREADS, remote
from shared.parquet import iter_rows, read_columns, table_writer, to_table, write_table
from shared.progress import Progress
from shared.schemas import MANIFEST_SCHEMA, ImageStatus, Kind, ManifestRow
from shared.terminal import printable

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 4_096  # of a manifest that is made
WORKERS = 2  # threads: hashing and decoding both let go of the interpreter
SPLITS = ("train", "query", "gallery", "all")


def write_manifest(rows: Sequence[ManifestRow], path: Path) -> None:
    write_table(to_table(rows, MANIFEST_SCHEMA), path)


def read_manifest(path: Path) -> list[ManifestRow]:
    """All rows of one manifest. Raises DataError when it is missing, damaged or of another version."""
    return list(iter_manifest(path))


def iter_manifest(path: Path, chosen: npt.NDArray[np.bool_] | None = None) -> Iterator[ManifestRow]:
    """The rows of one manifest, all or the chosen ones, read as they are asked for.

    Raises what `read_manifest` raises, at the first row.
    """
    try:
        for row in iter_rows(_existing(path), MANIFEST_SCHEMA, fix=_scan(path), chosen=chosen):
            yield ManifestRow.model_validate(row)
    except ValidationError as err:
        raise DataError(f"not a row of a manifest ({err.errors()[0]['msg']})", path=path, fix=_scan(path)) from err


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError("there is no manifest for this data set yet", path=path, fix=_scan(path))
    return path


def _scan(path: Path) -> str:
    return f"dgreid manifest {path.stem}"


def manifest_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of one manifest, without an object for each row. Raises as `read_manifest`."""
    table = read_columns(_existing(path), MANIFEST_SCHEMA, columns, fix=_scan(path))
    if {"kind", "identity"} <= set(columns):
        nobody = pc.is_null(table["identity"])
        wrong = table.filter(pc.equal(nobody, pc.equal(table["kind"], Kind.PERSON.value)))
        if len(wrong):
            reason = f"{len(wrong)} rows with a person and no identity, or the other way round"
            raise DataError(f"not rows of a manifest ({reason})", path=path, fix=_scan(path))
    return table


@dataclass(frozen=True)
class ManifestFile:
    """A manifest that can be walked through any number of times without being held in memory."""

    path: Path

    def __iter__(self) -> Iterator[ManifestRow]:
        return iter_manifest(self.path)

    def chosen(self, rows: npt.NDArray[np.bool_]) -> Iterator[ManifestRow]:
        """Those of its rows [N] that are True."""
        return iter_manifest(self.path, rows)


@dataclass(frozen=True)
class SplitSummary:
    """One line of the data set's table."""

    split: str
    images: int  # files, unreadable ones included
    identities: int  # people; neither distractors nor junk
    cameras: int  # 0 when the data set does not label them
    distractors: int  # images
    junk: int  # images
    unreadable: int
    duplicates: int  # images whose bytes appeared before in the same split

    @property
    def counts(self) -> Counts:
        return Counts(self.images, self.identities, self.cameras, self.distractors, self.junk)


def build_manifest(name: str, data_root: Path, out: Path, *, workers: int = WORKERS) -> list[ManifestRow]:
    """`update_manifest`, and all its rows."""
    return list(update_manifest(name, data_root, out, workers=workers))


def update_manifest(name: str, data_root: Path, out: Path, *, workers: int = WORKERS) -> ManifestFile:
    """Scan a data set and write its manifest to `out`, atomically; rows sorted by path and split.

    Names that had to be numbered are told in the log and kept in identity_name and camera_name.
    Files whose path, size and modification time are those of the manifest already at `out` are not read again. Broken
    images become rows with status unreadable and the reason. Files that are no images of the layout are counted by
    reason in the log. In memory are the names of all files, but no more than ROWS_AT_ONCE rows.

    Args:
        name: any accepted name of the data set.
        workers: decoding threads, of a folder on this machine.

    Raises ConfigError for an unknown name, DataError when the data set is not there, cannot be read whole, has no
    images or a split without people, DgreidError when `out` cannot be written.
    """
    name = resolve_name(name, data_root)
    scanned = scan_dataset(name, data_root)
    for sentence in scanned.told():
        log.warning("%s: %s", name, printable(sentence))
    root, known = locate(name, data_root), _Known(name, out)
    if remote(root):
        workers = THREADS
    files = iter(scanned.files)
    with (
        Progress(f"scan {name}", len(scanned.files)) as progress,
        ThreadPool(workers) as pool,
        table_writer(out, MANIFEST_SCHEMA) as write,
    ):
        while records := list(itertools.islice(files, ROWS_AT_ONCE)):
            before = known.up_to(records[-1].path)
            rows = []
            for row in pool.imap(partial(_row, name, root, before), records, chunksize=16):
                rows.append(row)
                progress.advance(failure=ImageStatus.UNREADABLE if row.status == ImageStatus.UNREADABLE else None)
            write(rows)
    for sentence in copies(ManifestFile(out)):
        log.warning("%s: %s", name, printable(sentence))
    return ManifestFile(out)


def copies(manifest: ManifestFile) -> list[str]:
    """A sentence for each way in which files of one content contradict each other or count twice, with their number.

    A query that is in the gallery with its own identity and camera is not among them: it is removed before ranking.
    """
    ids = manifest_columns(manifest.path, ["image_id"])["image_id"].combine_chunks().cast(pa.binary())
    try:
        fixed = ids.cast(pa.binary(16))
    except pa.ArrowInvalid as err:
        raise DataError(f"not a row of a manifest ({err})", path=manifest.path, fix=_scan(manifest.path)) from err
    known = np.frombuffer(fixed.buffers()[1] or b"", "S16")[: len(fixed)]  # no object for each of a million
    _, kind_of, counts = np.unique(known, return_inverse=True, return_counts=True)
    first: dict[str, ManifestRow] = {}
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in manifest.chosen(counts[kind_of] > 1):
        before = first.setdefault(row.image_id, row)
        if before is not row and (what := _contradiction(before, row)):
            found[what].append(f"{before.path} ({before.split}) and {row.path} ({row.split})")
    return [
        f"{len(pairs):,} {'pair' if len(pairs) == 1 else 'pairs'} of files with the same bytes {what}, e.g. {pairs[0]}"
        for what, pairs in sorted(found.items())
    ]


def _contradiction(one: ManifestRow, other: ManifestRow) -> str:
    if one.split != other.split and "train" in (one.split, other.split):
        return "are in training and test at once: scores are too good"
    if (one.kind, one.identity) != (other.kind, other.identity):
        return "are of different identities: one is wrong"
    if one.camera != other.camera:
        return "are of different cameras: one is wrong, and a query finds its copy"
    if one.split == other.split:
        return "are of one identity and camera: each counts as an image"
    return "are query and gallery without a camera: a query finds its copy" if one.camera is None else ""


def summarise(rows: Iterable[ManifestRow]) -> list[SplitSummary]:
    """One line per split that has images, in the order train, query, gallery, all. The rows are read once."""
    unreadable: Counter[str] = Counter()
    seen: defaultdict[str, set[str]] = defaultdict(set)  # image_ids of readable files

    def noted() -> Iterator[ManifestRow]:
        for row in rows:
            if row.status == ImageStatus.OK:
                seen[row.split].add(row.image_id)
            else:
                unreadable[row.split] += 1
            yield row

    found = count_splits(noted())
    return [
        SplitSummary(split, *counts, unreadable[split], counts.images - unreadable[split] - len(seen[split]))
        for split in SPLITS
        if (counts := found.get(split))
    ]


_Rows = dict[tuple[str, int, int], ManifestRow]  # by (path, size, time)


class _Known:
    """The readable rows of the last manifest, walked through once. Unreadable files get another look every time."""

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._rows = name, iter_manifest(path) if path.is_file() else iter(())
        self._read: _Rows = {}  # and not passed yet
        self._passed = ""
        self._next: ManifestRow | None = None
        self._advance()

    def up_to(self, path: str) -> _Rows:
        """The rows from the last path that was asked for up to this one, both included."""
        self._read = {key: row for key, row in self._read.items() if row.path == self._passed}
        self._passed = path
        while (row := self._next) and row.path <= path:
            if row.dataset == self._name and row.status == ImageStatus.OK:
                self._read[row.path, row.size_bytes, row.modified_ns] = row
            self._advance()
        return self._read

    def _advance(self) -> None:
        try:
            self._next = next(self._rows, None)
        except DataError as err:
            self._next = None
            log.warning("%s: what follows is scanned again, the old manifest is of no use: %s", self._name, err.what)


def _row(name: str, root: Path, known: _Rows, record: FileRecord) -> ManifestRow:
    labels = record._asdict()
    del labels["path"]
    path = root / record.path
    size, modified = _size_and_time(path)
    if before := known.get((record.path, size, modified)):
        return before.model_copy(update=labels)
    content, width, height, reason = b"", 0, 0, ""
    try:
        content = read_file(path)
        width, height = decode(content, path).size
    except UnreadableImageError as err:
        reason = err.reason
    return ManifestRow(
        dataset=name,
        path=record.path,
        image_id=image_id_of(content) if content else _id_without_content(name, record.path),
        width=width,
        height=height,
        status=ImageStatus.UNREADABLE if reason else ImageStatus.OK,
        reason=reason,
        size_bytes=size,
        modified_ns=modified,
        **labels,
    )


def _id_without_content(dataset: str, path: str) -> str:
    """The image_id of a file that is empty or could not be read: its own, and never that of any content."""
    return f"path:{hashlib.sha256(f'{dataset}/{path}'.encode(errors='surrogateescape')).hexdigest()[:11]}"


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # gone since the names were listed: reading it says so in its row
        return 0, 0
    return status.st_size, status.st_mtime_ns
