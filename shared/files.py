"""Files appear whole or not at all: written under a temporary name, synced, then renamed. Reading has a limit.

In an object store they are written on this machine and then put; see shared.object_storage.
"""

import errno
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.errors import DgreidError
from shared.mirror import put_mirrored, remove_mirrored
from shared.object_storage import ObjectPath, remote


def read_limited(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes`, without ever reading more of it.

    Raises OSError, with the reason as `strerror`, for a larger file, for what is not a regular file (a FIFO or a device
    would block, or never end) and for what the system refuses.
    """
    if there := remote(path):
        return _read_object(there, max_bytes)
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


def _read_object(path: ObjectPath, max_bytes: int) -> bytes:
    try:
        content = path.read_bytes(max_bytes + 1)
    except FileNotFoundError:
        if path.is_dir():
            raise OSError(errno.EINVAL, "a folder, not a regular file") from None
        raise
    if len(content) > max_bytes:
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
    """Create a folder and its parents; an object store needs none. Raises DgreidError when it cannot be written."""
    if remote(path):
        return path
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
    if there := remote(path):
        try:
            with tempfile.TemporaryDirectory(prefix="dgreid-") as scratch:
                yield Path(scratch) / path.name
                there.put(Path(scratch) / path.name)
        except OSError as err:  # of this machine: the store's are StorageErrors
            raise DgreidError(f"cannot write the file before it is put: {err.strerror or err}", path=path,
                              fix="free some space, or name another place with TMPDIR=<folder>") from err  # fmt: skip
        return
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
        put_mirrored(path)
    except OSError as err:
        raise _cannot_write(path, err) from err
    finally:
        if temporary.parent.is_dir() and os.access(temporary.parent, os.W_OK):
            temporary.unlink(missing_ok=True)


def move_file(path: Path, to: Path) -> None:
    """Give a complete file another place on the same file system. Raises DgreidError when it cannot be written."""
    make_folder(to.parent)
    source, target = remote(path), remote(to)
    if source and target:
        source.copy_to(target)
        source.unlink()
        return
    try:
        path.replace(to)
        _sync_folder(to.parent)
    except OSError as err:
        raise _cannot_write(to, err) from err


def remove_file(path: Path) -> None:
    """Delete a file, if it is there. Raises DgreidError when it cannot be deleted."""
    try:
        path.unlink(missing_ok=True)
        remove_mirrored(path)
    except OSError as err:
        raise _cannot_write(path, err) from err


def remove_tree(folder: Path) -> None:
    """Delete a folder and all in it, as far as that can be done."""
    if there := remote(folder):
        for name in there.files():
            (there / name).unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


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
            if (match := pattern.fullmatch(entry.name)) and not process_is_alive(int(match[1])):
                Path(entry.path).unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:40]


def process_is_alive(process: int) -> bool:
    """Whether this machine has such a process; True where that cannot be told."""
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
        fix="free some disk space, or name another folder with RUNS_ROOT=<folder you may write>",
    )
