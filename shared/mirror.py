"""Folders of an object store that are worked on here: training runs, whose checkpoints, event files and memory-mapped
arrays need a file system.

The store is what counts. `fetch` makes the folder on this machine what the store has; every file that shared.files
finishes in it is put into the store at once, and `store` puts the rest. A file whose size and time are those of its
object is taken to be the same, so a put file gets its object's time.
"""

import fcntl
import hashlib
import logging
import os
from multiprocessing.pool import ThreadPool
from pathlib import Path

from shared.object_storage import THREADS, ObjectPath, ObjectStatus, StorageError, remote

log = logging.getLogger(__name__)

_mirrors: dict[Path, ObjectPath] = {}  # of this process: folder on this machine -> place in the store
_locks: dict[Path, int] = {}  # folders that this process works in
_LOCK = ".mirror.lock"


def mirrored_at(place: ObjectPath, cache: Path) -> Path:
    """The folder on this machine that stands for a place in a store, from now on in this process."""
    name = f"{place.name or 'root'}-{hashlib.sha256(str(place).encode()).hexdigest()[:12]}"
    folder = (cache / "mirrors" / name).absolute()
    _mirrors[folder] = place
    return folder


def place_of(path: Path) -> ObjectPath | None:
    """Where a file on this machine is kept in a store, if it is; None for what lies in a store itself."""
    if remote(path):
        return None
    for folder, place in _mirrors.items():
        if path.is_relative_to(folder):
            return place / path.relative_to(folder).as_posix()
    return None


def fetch(folder: Path) -> None:
    """Make a mirrored folder what the store has. What was not put is gone: a killed process may have left it.

    While another process on this machine works in the folder it is taken as it is.
    """
    if not (place := place_of(folder)) or not _alone(folder):
        return
    there, here = place.files(), _files(folder)
    if unsafe := [name for name in there if ".." in name.split("/")]:
        raise StorageError("a name that leaves the folder", path=str(place / unsafe[0]), fix="delete this object")
    for name in here.keys() - there.keys():
        (folder / name).unlink(missing_ok=True)

    def get(name: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        (place / name).get(temporary)
        temporary.replace(path)
        _date(path, there[name])

    with ThreadPool(THREADS) as pool:
        pool.map(get, [name for name, status in there.items() if here.get(name) != _mark(status)], chunksize=1)
    _shared(folder)


def store(folder: Path) -> None:
    """Put everything in a mirrored folder that the store does not have."""
    if place := place_of(folder):
        there = place.files()
        for name, mark in _files(folder).items():
            if name not in there or _mark(there[name]) != mark:
                put_mirrored(folder / name)


def put_mirrored(path: Path) -> None:
    """Put a complete file, if it lies in a mirrored folder."""
    if _mirrors and (place := place_of(path)):
        place.put(path)
        _date(path, place.stat())


def remove_mirrored(path: Path) -> None:
    if _mirrors and (place := place_of(path)):
        place.unlink(missing_ok=True)


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> size and time of the files below, without unfinished ones and our lock."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and not path.name.endswith((".tmp", ".lock")):
            status = path.stat()
            found[path.relative_to(folder).as_posix()] = (status.st_size, int(status.st_mtime))
    return found


def _mark(status: ObjectStatus) -> tuple[int, int]:
    return status.st_size, int(status.st_mtime)


def _date(path: Path, status: ObjectStatus) -> None:
    os.utime(path, (status.st_mtime, int(status.st_mtime)))


def _alone(folder: Path) -> bool:
    """Lock a folder for this process; False when another one, which has brought it up to date, works in it."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder not in _locks:
        _locks[folder] = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(_locks[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _shared(folder)  # waits while it is being brought up to date
        log.info("another process works in %s", folder)
        return False
    return True


def _shared(folder: Path) -> None:
    """Let others in, who then take the folder as it is; the system ends this with the process."""
    fcntl.flock(_locks[folder], fcntl.LOCK_SH)
