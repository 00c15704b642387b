"""The label store: part labels as Parquet shards, written by label runs, read as Arrow tables and DuckDB views.

    <labels root>/<label run>/_run.json                                       what made the run
    <labels root>/<label run>/shards/<data set>/<split>/part-<number>.parquet

`<label run>/shards` and every folder below it holds nothing but Parquet files with all columns in them, so that pandas,
polars, pyarrow and DuckDB open it as it is. Runs of older versions (`label_run=<run>/dataset=<name>/split=<split>`,
with `run.json`) are read and continued where they are.

Rows are never changed: asking again writes new ones. Of the rows of one (label run, data set, image, part) the newest
counts, and newest means: in the shard with the highest number, whatever the clock said. Numbers run through all splits
of a data set. Older versions numbered each split by itself; between shards of equal number `created_at` decides.
"""

import fcntl
import functools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shared.errors import ConfigError, DataError, DgreidError, did_you_mean
from shared.files import make_folder, move_file, remove_tree, write_text
from shared.lease import lease
from shared.object_storage import remote
from shared.parquet import read_table, to_table, write_table
from shared.schemas import LABEL_SCHEMA, LabelRow, LabelStatus

log = logging.getLogger(__name__)

CORRECTS = "corrects"  # key of a run's record: the run that this one is a correction of
_RECORD, _OLD_RECORD = "_run.json", "run.json"  # Parquet readers pass over names that start with an underscore
SHARDS = "shards"
STAGING = "_unfinished"
COPYING = "_copying"  # in an object store, where nothing can be renamed: the run is not there yet
_REPLACING = "_{dataset}.replacing.json"  # which shards take the place of which, while they do
_SHARD = re.compile(r"part-(\d+)\.parquet")
_PARQUET = (".parquet", ".parq", ".pq")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_FIX = (
    "where dgreid wrote this shard, delete it and run the same dgreid label command again; boxes of other programs "
    "come in with dgreid import-labels"
)


# ---- label runs


def check_name(label_run: str) -> None:
    """Raises ConfigError for a label run's name that cannot be a folder's name."""
    if not _NAME.fullmatch(label_run):
        raise ConfigError(
            f"label run {label_run!r} is not a plain name", fix="use letters, digits, dot, dash, underscore"
        )


def check_free(labels_root: Path, label_run: str) -> None:
    """Raises ConfigError for a name that a new label run cannot have: no plain name, or taken."""
    check_name(label_run)
    if run_folder(labels_root, label_run).exists():
        raise ConfigError(f"the label run {label_run!r} exists already", fix="name another with --label-run <run>")


def run_folder(labels_root: Path, label_run: str) -> Path:
    """The folder of a label run, whether or not it is there. Raises DataError when two folders claim the name."""
    new, old = labels_root / label_run, labels_root / f"label_run={label_run}"
    is_old = old.is_dir()
    if is_old and new.is_dir():
        raise DataError(f"two folders hold label run {label_run!r}: {new.name} and {old.name}", path=labels_root,
                        fix="rename one of them")  # fmt: skip
    return old if is_old else new


def label_runs(labels_root: Path, datasets: Iterable[str] | None = None) -> list[str]:
    """Names of the runs that have labels (of one of the data sets), sorted."""
    wanted = None if datasets is None else set(datasets)
    places = [place_of(shard) for shard in label_shards(labels_root)]
    return sorted({place.label_run for place in places if place and (wanted is None or place.dataset in wanted)})


def corrected_runs(labels_root: Path, runs: Iterable[str]) -> set[str]:
    """Those of the runs that another of them corrects. A run made by correcting another one is whole: it holds every
    row of that one, the corrected ones replaced, and takes its place wherever no run is named."""
    return {str(record[CORRECTS]) for run in runs if CORRECTS in (record := _record_or_nothing(labels_root, run))}


def choose_label_run(asked: str | None, datasets: Sequence[str], labels_root: Path) -> str:
    """The label run to read: the one asked for, or the only one that has labels of the data sets.

    A run that another one corrects is not in question unless it is asked for. Raises ConfigError for an unknown or
    ambiguous choice, DataError when there are no labels at all.
    """
    runs = label_runs(labels_root, datasets)
    if asked is not None and asked in runs:
        return asked
    if asked is not None and runs:
        raise ConfigError(
            f"there is no label run {asked!r} of {', '.join(datasets)}{did_you_mean(asked, runs)}",
            fix=f"choose one of --label-run {' or --label-run '.join(runs)}",
        )
    current = sorted(set(runs) - corrected_runs(labels_root, runs))
    if not current:
        raise DataError(
            f"there are no part labels of {', '.join(datasets)} yet",
            path=labels_root,
            fix="; ".join(f"dgreid label {name}" for name in datasets),
        )
    if len(current) > 1:
        raise ConfigError(
            f"there are several label runs: {', '.join(current)}", fix="choose one with --label-run <run>"
        )
    return current[0]


def record_path(labels_root: Path, label_run: str) -> Path:
    """The file that says what made a run."""
    folder = run_folder(labels_root, label_run)
    return folder / (_OLD_RECORD if _is_old(folder) else _RECORD)


def read_record(labels_root: Path, label_run: str) -> dict[str, Any] | None:
    """What made a run; None when it has no record yet. Raises DataError for a damaged one."""
    path, remedy = record_path(labels_root, label_run), "use another label run name"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise DataError(f"damaged record of a label run ({err})", path=path, fix=remedy) from err
    if not isinstance(found, dict):
        raise DataError("damaged record of a label run (not a JSON object)", path=path, fix=remedy)
    return found


def write_record(labels_root: Path, label_run: str, record: Mapping[str, Any]) -> None:
    write_text(record_path(labels_root, label_run), json.dumps({"label_run": label_run, **record}, indent=2) + "\n")


@contextmanager
def writer_lock(labels_root: Path, label_run: str, dataset: str) -> Iterator[None]:
    """Let one process at a time write labels of this run and data set; the system frees it when the process dies.

    Removes what a killed writer left unfinished, and finishes what a killed `replace_shards` began. Raises DgreidError
    when another process is writing, DataError when that cannot be finished.
    """
    run = run_folder(labels_root, label_run)
    folder = make_folder(run / f"dataset={dataset}" if _is_old(run) else run)
    with _locked(folder / (".lock" if _is_old(run) else f"_{dataset}.lock")):
        if _is_old(run):
            for leftover in folder.glob("split=*/.part-*.tmp"):
                leftover.unlink(missing_ok=True)
        _finish_replacing(labels_root, label_run, dataset)
        remove_tree(run / STAGING / dataset)
        try:
            yield
        finally:
            remove_tree(run / STAGING / dataset)
            if not remote(run):
                with suppress(OSError):  # another data set is being labelled
                    (run / STAGING).rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    what = "labelling this data set in this run"
    if there := remote(path):
        with lease(there, what):
            yield
        return
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise DgreidError(f"another process is {what}", path=path.parent, fix="wait for it, or stop it") from err
        yield


# ---- shards


def label_folder(labels_root: Path, label_run: str, dataset: str, split: str) -> Path:
    """Where the shards of one (label run, data set, split) are written."""
    run = run_folder(labels_root, label_run)
    return run / f"dataset={dataset}" / f"split={split}" if _is_old(run) else run / SHARDS / dataset / split


def label_shards(labels_root: Path, *, label_run: str = "*", dataset: str = "*") -> list[Path]:
    """Finished shards of one or all label runs and data sets, ordered by run, data set, number and split."""
    runs = [run_folder(labels_root, label_run)] if label_run != "*" else _run_folders(labels_root)
    found = []
    for run in runs:
        if remote(run) and (run / COPYING).exists():
            continue
        for path, is_shard in _tables(run):
            place = place_of(path) if is_shard else None
            if place is None or place.number is None:
                _warn_of(path)
            elif dataset in ("*", place.dataset):
                found.append((place.label_run, place.dataset, place.number, place.split, path))
    return [path for *_, path in sorted(found)]


def write_label_shard(rows: Sequence[LabelRow], folder: Path) -> Path:
    """Write rows of one (label run, data set, split) as the next shard of its `label_folder`."""
    return write_label_table(to_table(rows, LABEL_SCHEMA), folder)


def write_label_table(table: pa.Table, folder: Path) -> Path:
    """`write_label_shard` for rows that are a table of LABEL_SCHEMA already. The shard's number is above that of all
    shards of the data set; other files in the folder stay as they are."""
    siblings = folder.parent.glob("*/part-*.parquet")  # of all splits
    numbers = [int(match[1]) for path in siblings if (match := _SHARD.fullmatch(path.name))]
    path = folder / f"part-{max(numbers, default=-1) + 1:05d}.parquet"
    inside = folder.parent.parent.name == SHARDS
    write_table(table, path, staging=folder.parents[2] / STAGING / folder.parent.name if inside else None)
    return path


def staged_shard(labels_root: Path, label_run: str, dataset: str, split: str, number: int) -> Path:
    """Where a shard is written that `replace_shards` will put into the store; gone when the lock is given back."""
    return run_folder(labels_root, label_run) / STAGING / dataset / split / f"part-{number:05d}.parquet"


def replace_shards(
    labels_root: Path,
    label_run: str,
    dataset: str,
    staged: Sequence[tuple[str, int]],
    old: Sequence[Path],
) -> None:
    """Let shards that hold the same rows take the place of others; for who holds the `writer_lock`.

    They appear one by one, in the order given, before the first old one goes: with numbers above all others, and those
    with the newest rows first, `labels` shows the same at every moment. Killed in between, the next holder of the lock
    finishes it; until then rows may be there twice.

    Args:
        staged: (split, number) of complete files at their `staged_shard`.
        old: shards to remove.
    """
    places = [place for path in old if (place := place_of(path))]
    gone = [(place.split, place.number) for place in places]
    record = _replacing_path(labels_root, label_run, dataset)
    write_text(record, json.dumps({"new": [list(pair) for pair in staged], "old": [list(pair) for pair in gone]}))
    _finish_replacing(labels_root, label_run, dataset)


def is_being_replaced(labels_root: Path, label_run: str, dataset: str) -> bool:
    """Whether a `replace_shards` is running, or was killed."""
    return _replacing_path(labels_root, label_run, dataset).exists()


def read_labels(paths: Iterable[Path]) -> list[LabelRow]:
    """All label rows of the given shards. Raises DataError for a damaged or foreign shard."""
    return [LabelRow(**row) for path in paths for row in read_label_table(path).to_pylist()]


def read_label_table(path: Path) -> pa.Table:
    """The rows of one shard. Raises DataError when it is damaged, of another version, has an unknown status, or rows of
    another label run, data set or split than its folder."""
    table = read_table(path, LABEL_SCHEMA, fix=_FIX)
    _check_values(table, path)
    return table


def check_shard(path: Path) -> None:
    """Raises what `read_label_table` raises, without reading the boxes (so that damage inside their pages stays)."""
    _check_values(read_table(path, LABEL_SCHEMA, fix=_FIX, columns=("label_run", "dataset", "split", "status")), path)


# ---- the layout on disk


@dataclass(frozen=True)
class Place:
    label_run: str
    dataset: str
    split: str
    number: int | None  # None: the file's name is not a shard's


def place_of(path: Path) -> Place | None:
    """What a shard's path says that it holds; None for a file that is not in a label store."""
    if len(path.parts) < 4:
        return None
    above, dataset, split, name = path.parts[-4:]
    match = _SHARD.fullmatch(name)
    number = int(match[1]) if match else None
    if above == SHARDS and len(path.parts) > 4:
        return Place(path.parts[-5], dataset, split, number)
    pairs = [part.partition("=") for part in (above, dataset, split)]
    if [key for key, _, _ in pairs] == ["label_run", "dataset", "split"]:
        (_, _, run), (_, _, dataset), (_, _, split) = pairs
        return Place(run, dataset, split, number)
    return None


def _is_old(run: Path) -> bool:
    return run.name.startswith("label_run=")


def _replacing_path(labels_root: Path, label_run: str, dataset: str) -> Path:
    return run_folder(labels_root, label_run) / _REPLACING.format(dataset=dataset)


def _finish_replacing(labels_root: Path, label_run: str, dataset: str) -> None:
    record = _replacing_path(labels_root, label_run, dataset)
    if not record.is_file():
        return
    try:
        pairs = json.loads(record.read_text(encoding="utf-8"))
        new, old = ([(str(split), int(number)) for split, number in pairs[key]] for key in ("new", "old"))
        if not all(_NAME.fullmatch(split) for split, _ in (*new, *old)):
            raise ValueError("a split that is not a plain name")
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(f"damaged record of a compaction ({err})", path=record, fix="delete it") from err
    places = [(pair, label_folder(labels_root, label_run, dataset, pair[0]) / f"part-{pair[1]:05d}.parquet")
              for pair in new]  # fmt: skip
    ready = [(staged_shard(labels_root, label_run, dataset, *pair), place) for pair, place in places]
    if missing := [place for staged, place in ready if not (staged.is_file() or place.is_file())]:
        raise DataError(
            "an interrupted compaction cannot be finished: a new shard is gone",
            path=missing[0],
            fix=f"put the shard back, or delete {record} and see what dgreid verify-labels finds",
        )
    for staged, place in ready:
        if staged.is_file():
            move_file(staged, place)
    for split, number in old:
        (label_folder(labels_root, label_run, dataset, split) / f"part-{number:05d}.parquet").unlink(missing_ok=True)
    record.unlink()


def _run_folders(labels_root: Path) -> list[Path]:
    if not labels_root.is_dir():
        return []
    names = (path.name for path in labels_root.iterdir() if path.is_dir() and path.name[0] not in "._")
    return sorted({run_folder(labels_root, name.removeprefix("label_run=")) for name in names})


def _record_or_nothing(labels_root: Path, label_run: str) -> dict[str, Any]:
    try:
        return read_record(labels_root, label_run) or {}
    except DataError as err:  # then it corrects nothing
        log.warning("%s", err)
        return {}


def _tables(run: Path) -> Iterator[tuple[Path, bool]]:
    """Files of a run that look like Parquet, and whether each is in a folder of shards."""
    if _is_old(run):
        yield from ((path, True) for path in run.glob("dataset=*/split=*/part-*.parquet"))
        return
    if there := remote(run):
        names = {*there.files()}
    else:  # rglob follows no link
        names = {path.relative_to(run).as_posix() for path in (*run.rglob("*.*"), *run.glob(f"{SHARDS}/*/*/*.*"))}
    for name in sorted(names):
        parts = name.split("/")
        if name.lower().endswith(_PARQUET) and not any(part[0] in "._" for part in parts):
            yield run / name, len(parts) == 4 and parts[0] == SHARDS


@functools.cache
def _warn_of(path: Path) -> None:
    log.warning(
        "not a shard of the label store, left out: %s; shards are <label run>/%s/<data set>/<split>/"
        "part-<number>.parquet",
        path,
        SHARDS,
    )


def _check_values(table: pa.Table, path: Path) -> None:
    place, statuses = place_of(path), [str(status) for status in LabelStatus]
    wanted = {"status": statuses}
    if place:
        wanted |= {"label_run": [place.label_run], "dataset": [place.dataset], "split": [place.split]}
    for name, allowed in wanted.items():
        if strange := sorted(set(pc.unique(table[name]).to_pylist()) - set(allowed)):
            expected = f"only {allowed[0]!r} belongs here" if len(allowed) == 1 else f"known: {', '.join(allowed)}"
            raise DataError(
                f"rows with {name} {strange[0]!r} ({expected})",
                path=path,
                fix="move the shard to where it belongs" if name != "status" else "update dgreid, or delete this shard",
            )
