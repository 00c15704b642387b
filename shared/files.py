"""Files appear whole or not at all: written under a temporary name, synced, then renamed."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
def atomic_path(path: Path, *, staging: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes `path`, on an exception it is removed.

    The temporary name ends in `.tmp`, so readers that glob for the final suffix never see half a file. What a killed
    process left of the same file is removed. Raises DgreidError when the folder cannot be written.

    Args:
        staging: folder for the temporary file, on the same file system; default: the folder of `path`.
    """
    make_folder(path.parent)
    folder = make_folder(staging) if staging else path.parent
    _remove_leftovers(folder, path.name)
    temporary = folder / f".{path.name}.{_host()}-{os.getpid()}.tmp"
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


def _remove_leftovers(folder: Path, name: str) -> None:
    """Remove temporary files of `name` whose process on this machine has ended."""
    pattern = re.compile(rf"\.{re.escape(name)}\.{re.escape(_host())}-(\d+)\.tmp")
    with suppress(OSError):  # whoever may not look may not write either, which is said in a moment
        for entry in os.scandir(folder):
            if (match := pattern.fullmatch(entry.name)) and not _is_alive(int(match[1])):
                Path(entry.path).unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:40]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


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
