"""What happened in a label run, as JSON lines beside its shards: `<run>/_logs/<data set>.jsonl`, rotated.

Events: start, progress (every minute), image_failed, end, failed; and the warnings of this project's code. Never the
content of an image, nor what a model said about it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from tempfile import TemporaryDirectory

from labeler.service.json_log import JsonFormatter
from shared.files import make_folder
from shared.labels import run_folder
from shared.object_storage import StorageError, remote

FILE_BYTES = 20 * 2**20  # after which a new file is begun ...
OLD_FILES = 5  # ... and so many older ones are kept, as .1 to .5
PROGRESS_S = 60.0

_events = logging.getLogger("labeler.annotation.events")
_events.setLevel(logging.INFO)
_events.propagate = False  # these are for the file; a terminal has the progress line


def event(name: str, **fields: object) -> None:
    """One line of the log, if one is open."""
    _events.info(name, extra={"fields": {"event": name, **fields}})


def log_path(labels_root: Path, label_run: str, dataset: str) -> Path:
    return run_folder(labels_root, label_run) / "_logs" / f"{dataset}.jsonl"


@contextmanager
def run_log(path: Path) -> Iterator[None]:
    """Inside it events and warnings are written; for one process at a time, who holds the run's lock.

    In an object store the log of each session is put at its end, under a name with the time of its start; a killed
    session leaves none. Raises DgreidError when the folder cannot be written.
    """
    if there := remote(path):
        with TemporaryDirectory(prefix="dgreid-") as scratch:
            session = Path(scratch) / f"{path.stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}{path.suffix}"
            try:
                with run_log(session):
                    yield
            finally:
                try:
                    for file in sorted(Path(scratch).iterdir()):
                        (there.parent / file.name).put(file)
                except StorageError as err:  # the rows are what counts
                    logging.getLogger(__name__).warning("the log of this session is lost: %s", err)
        return
    make_folder(path.parent)
    handler = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=OLD_FILES, encoding="utf-8", delay=True)
    handler.setFormatter(JsonFormatter())
    added: list[tuple[logging.Logger, logging.Handler]] = [(_events, handler)]
    for logger in (logging.getLogger("labeler"), logging.getLogger("shared")):
        if not logger.hasHandlers() and logging.lastResort:  # where nobody set up logging, warnings still reach stderr
            added.append((logger, logging.lastResort))
        added.append((logger, handler))
    for logger, one in added:
        logger.addHandler(one)
    try:
        yield
    finally:
        for logger, one in added:
            logger.removeHandler(one)
        handler.close()
