"""Files appear whole or not at all: written under a temporary name, synced, then renamed. Reading has a limit."""

import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.errors import DgreidError


def read_limited(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes`, without ever reading more of it.

    Raises OSError, with the reason as `strerror`, for a larger file, for what is no regular file (a FIFO or a device
    would block, or never end) and for what the system refuses.
    """
    _require_regular(path.stat().st_mode)  # before opening, which already does something to a device
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        _require_regular(status.st_mode)
        content = file.read(status.st_size + 1) if status.st_size <= max_bytes else None
        if content is not None and len(content) > status.st_size:  # it grew, or has no size, as those of /proc
            content += file.read(max_bytes + 1 - len(content))
    if content is None or len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than the limit of {_bytes_told(max_bytes)}")
    return content


def _require_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    kind = kinds.get(stat.S_IFMT(mode), "device")
    raise OSError(errno.EINVAL, f"a {kind}, not a regular file")


def _bytes_told(count: int) -> str:
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count // 2**10} KiB"


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


def move_file(path: Path, to: Path) -> None:
    """Give a complete file another place on the same file system. Raises DgreidError when it cannot be written."""
    make_folder(to.parent)
    try:
        path.replace(to)
        _sync_folder(to.parent)
    except OSError as err:
        raise _cannot_write(to, err) from err


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
