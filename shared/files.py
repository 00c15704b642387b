"""Files appear whole or not at all: written beside their place, synced, then renamed over it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import DgreidError


def make_folder(path: Path) -> Path:
    """Create a folder and its parents. Raises DgreidError when the place cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise _cannot_write(path, err) from err
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it becomes `path`, on an exception it is removed.

    The temporary name ends in `.tmp`, so readers that glob for the final suffix never see half a file.
    Raises DgreidError when the folder cannot be written.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as err:
        raise _cannot_write(path, err) from err
    finally:
        if temporary.parent.is_dir() and os.access(temporary.parent, os.W_OK):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically. Raises DgreidError when it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text to `path` atomically. Raises DgreidError when it cannot be written."""
    write_bytes(path, content.encode())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)  # the rename itself must survive a power cut
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, err: OSError) -> DgreidError:
    return DgreidError(
        f"cannot write: {err.strerror or err}",
        path=path,
        fix="free the place or name another with RUNS_ROOT=<folder you may write>",
    )
