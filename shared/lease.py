"""One writer at a time in an object store, which has no locks: an object that its holder renews.

It is taken with a conditional request where the store has those (S3, GCS). A holder that is killed leaves it: on the
same machine its successor sees that the process is gone, from elsewhere it counts as left when it was not renewed for
five minutes. That compares clocks, so machines that share a store need the time of day.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shared.errors import DgreidError
from shared.files import process_is_alive
from shared.object_storage import ObjectPath, StorageError

log = logging.getLogger(__name__)

RENEWED_S = 60.0
LEFT_S = 300.0
SETTLED_S = 2.0  # after which a lease that two processes took over at once shows the one who has it

_held: set[str] = set()  # marks of this process


@contextmanager
def lease(
    path: ObjectPath, what: str, *, afterwards: str = "dgreid verify-labels says whether rows were written twice"
) -> Iterator[None]:
    """Hold an object for the length of a `with` block.

    Args:
        what: another process does, for the message.
        afterwards: how to see whether two that worked at once did harm, for the message.

    Raises DgreidError when another process holds it, and at the end when another one took it meanwhile, as it does
    when this process slept for longer than `LEFT_S`.
    """
    mark = secrets.token_hex(8)
    content = json.dumps({"mark": mark, "host": socket.gethostname(), "process": os.getpid()}).encode()
    if not path.put_new(content):
        _take_over(path, content, what)
    _held.add(mark)
    ended, lost = threading.Event(), threading.Event()

    def renew() -> None:
        while not ended.wait(RENEWED_S):
            try:
                if _content(path) not in (content, None):
                    lost.set()
                    return
                path.put_bytes(content)
            except StorageError as err:  # the next one may pass
                log.warning("%s", err)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _held.discard(mark)
        try:
            if _content(path) == content:
                path.unlink(missing_ok=True)
        except StorageError as err:
            log.warning("the lock stays behind and counts for nothing in %.0f s: %s", LEFT_S, err)
    if lost.is_set():
        raise DgreidError(
            f"another process started {what} in the meantime",
            path=str(path),
            fix=f"stop one of the two; {afterwards}",
        )


def _take_over(path: ObjectPath, content: bytes, what: str) -> None:
    found = _content(path)
    try:
        holder: dict[str, Any] = json.loads(found or b"{}")
        age = time.time() - path.stat().st_mtime
    except (ValueError, FileNotFoundError):
        holder, age = {}, 0.0
    if found is not None and not _is_gone(holder) and age < LEFT_S:
        raise DgreidError(
            f"another process is {what} ({holder.get('host', 'unknown machine')}, process "
            f"{holder.get('process', 'unknown')}, seen {max(age, 0):.0f} s ago)",
            path=str(path),
            fix=f"wait for it, or stop it; when it was killed elsewhere, wait until it was not seen for {LEFT_S:.0f} s",
        )
    path.put_bytes(content)
    time.sleep(SETTLED_S)
    if _content(path) != content:
        raise DgreidError(f"another process is {what}", path=str(path), fix="wait for it, or stop it")


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that has ended."""
    process = holder.get("process")
    if holder.get("host") != socket.gethostname() or not isinstance(process, int):
        return False
    if process == os.getpid():
        return holder.get("mark") not in _held
    return not process_is_alive(process)


def _content(path: ObjectPath) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
