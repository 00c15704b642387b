"""A label run on disk: what produced it, which rows it has, and the lock of its writer."""

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from labeler.grounding.answers import ServiceInfo
from shared.errors import ConfigError, DataError, DgreidError
from shared.files import make_folder, write_text
from shared.labels import connect, label_shards
from shared.schemas import FINAL_STATUSES

RECORD = "run.json"
_BOUND_TO = ("engine", "model", "prompt_version", "parts", "missing_parts", "second_look")  # common to all its rows
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


def default_label_run(info: ServiceInfo) -> str:
    """A name from engine, model, prompt version and the rules that add to one answer."""
    words = (
        info.engine,
        info.model.rsplit("/", 1)[-1],
        *(() if info.prompt_version == "none" else (info.prompt_version,)),
        *(("filled",) if info.missing_parts == "prior" else ()),
        *(("second-look",) if info.second_look else ()),
    )
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words))[:120].strip("-.")


def open_label_run(labels_root: Path, label_run: str, info: ServiceInfo) -> None:
    """Record engine, model, prompt version, parts and rules of a new run, or check them against those of an old one.

    Raises ConfigError for an invalid name and for every difference, DataError for a damaged record.
    """
    check_name(label_run)
    path = labels_root / f"label_run={label_run}" / RECORD
    now = json.loads(info.model_dump_json(include=set(_BOUND_TO)))
    if not path.is_file():
        started = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(path, json.dumps({"label_run": label_run, **now, "started": started}, indent=2) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = [f"{key} {before.get(key)!r} -> {now[key]!r}" for key in _BOUND_TO if before.get(key) != now[key]]
    except (OSError, ValueError, AttributeError) as err:
        raise DataError(f"damaged record of a label run ({err})", path=path, fix="use another label run name") from err
    if differing:
        raise ConfigError(
            f"the label run {label_run!r} was made with other settings: {'; '.join(differing)}",
            path=path,
            fix="use another label run name, or the engine, model, prompt and rules it was started with",
        )


def check_name(label_run: str) -> None:
    """Raises ConfigError for a name of a label run that is not a plain folder name."""
    if not _NAME.fullmatch(label_run):
        raise ConfigError(
            f"label run {label_run!r} is not a plain name", fix="use letters, digits, dot, dash, underscore"
        )


def finished_parts(labels_root: Path, label_run: str, dataset: str, *, final_only: bool) -> dict[str, frozenset[str]]:
    """Parts that need no further question, by image_id.

    With `final_only` a part whose newest row is a failure is not finished; otherwise every row counts.
    Raises DataError for a damaged shard.
    """
    shards = label_shards(labels_root, label_run=label_run, dataset=dataset)
    status = (
        f"status in ({', '.join(repr(str(status)) for status in sorted(FINAL_STATUSES))})" if final_only else "true"
    )
    query = f"select image_id, list(distinct part order by part) from labels where {status} group by image_id"
    shared_sets: dict[tuple[str, ...], frozenset[str]] = {}  # nearly all images have the same parts
    try:
        with connect(labels=shards) as connection:
            rows = connection.execute(query).fetchall()
    except duckdb.Error as err:
        raise DataError(
            f"a shard of this label run cannot be read ({str(err).splitlines()[0][:200]})",
            path=labels_root / f"label_run={label_run}" / f"dataset={dataset}",
            fix="delete the damaged shard and run the same make label command again",
        ) from err
    return {image_id: shared_sets.setdefault(tuple(parts), frozenset(parts)) for image_id, parts in rows}


@contextmanager
def writer_lock(labels_root: Path, label_run: str, dataset: str) -> Iterator[None]:
    """Lets one process at a time write this run and data set; the operating system releases it when the process ends.

    Raises DgreidError when another process holds it.
    """
    path = make_folder(labels_root / f"label_run={label_run}" / f"dataset={dataset}") / ".lock"
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise DgreidError(
                "another process is labelling this data set in this run",
                path=path.parent,
                fix="wait for it, or stop it",
            ) from err
        yield
