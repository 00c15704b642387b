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
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from shared.errors import ConfigError, DataError, DgreidError, did_you_mean
from shared.files import make_folder, move_file, remove_tree, write_text
from shared.lease import lease
from shared.object_storage import THREADS, remote
from shared.parquet import check_file, read_table, to_table, write_table
from shared.schemas import LABEL_SCHEMA, MANIFEST_SCHEMA, PARTS, LabelRow, LabelStatus
from shared.workspace import Workspace

log = logging.getLogger(__name__)

CORRECTS = "corrects"  # key of a run's record: the run that this one is a correction of
CORRECTED, ACCEPTED = "corrected", "accepted"  # flags of rows that a person decided
_TAKEN = "taken"  # key of a correction's record: the corrected run's shards whose rows it has, with their bytes
_MERGED_ROWS = 3000  # of a shard that further corrections are added to: rewriting it stays a matter of milliseconds
_RECORD, _OLD_RECORD = "_run.json", "run.json"  # Parquet readers pass over names that start with an underscore
_SHARDS = "shards"
_STAGING = "_unfinished"
_COPYING = "_copying"  # in an object store, where nothing can be renamed: the run is not there yet
_REPLACING = "_{dataset}.replacing.json"  # which shards take the place of which, while they do
_SHARD = re.compile(r"part-(\d+)\.parquet")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_FIX = "delete this shard and run the same dgreid label command again"
_NOT_IN_PARTS = ("status", "reason", "size_bytes", "modified_ns")  # columns of the manifest that say nothing of a part


def read(dataset: str, label_run: str | None = None, *, workspace: Workspace | None = None) -> pa.Table:
    """The part labels of a data set: one row per (image, part), the newest, ordered by path and part.

        table = shared.labels.read("viper")
        frame = table.to_pandas()

    Args:
        dataset: its name or an alias.
        label_run: default: the only label run of the data set, or the one that corrects the others.
        workspace: default: from DATA_ROOT and RUNS_ROOT.

    Returns the columns of `shared.schemas.LABEL_SCHEMA`: boxes in pixels of the original images, maxima exclusive; NULL
    where `status` is not ok.
    Raises DataError when there are no labels or a shard is damaged, ConfigError for an unknown data set or label run,
    or when there are several runs to choose from.
    """
    workspace = workspace or Workspace.from_environment()
    if not label_shards(workspace.labels, dataset=dataset):
        from shared.datasets import resolve_name

        dataset = resolve_name(dataset, workspace.data_root)
    return newest_labels(workspace.labels, choose_label_run(label_run, [dataset], workspace.labels), dataset)


def newest_labels(labels_root: Path, label_run: str, dataset: str) -> pa.Table:
    """`read` for names that are known to be right. Raises DataError for a damaged shard."""
    shards = label_shards(labels_root, label_run=label_run, dataset=dataset)
    order = ", ".join(f"'{part}'" for part in PARTS)
    with connect(labels=shards) as connection:
        found = connection.sql(
            f"select * from labels order by path, coalesce(list_position([{order}], part), {len(PARTS) + 1}), part"
        )
        return found.to_arrow_table().cast(LABEL_SCHEMA)


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
    places = [_place(shard) for shard in label_shards(labels_root)]
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
        remove_tree(run / _STAGING / dataset)
        try:
            yield
        finally:
            remove_tree(run / _STAGING / dataset)
            if not remote(run):
                with suppress(OSError):  # another data set is being labelled
                    (run / _STAGING).rmdir()


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


def write_correction(
    labels_root: Path, corrects: str, label_run: str, rows: Sequence[LabelRow], record: Mapping[str, Any]
) -> None:
    """Write a run that holds all rows of another one and, as the newest, the given rows; it appears whole or not.

    Args:
        corrects: the run whose rows are taken over under the new name.
        rows: of one data set.
        record: what made the run.

    Raises ConfigError when the run exists or has no plain name, DataError for a damaged shard, DgreidError when the
    place cannot be written.
    """
    check_name(label_run)
    run = labels_root / label_run
    if remote(run) and (run / _COPYING).exists():  # left by a killed process
        remove_tree(run / _SHARDS)
        remove_tree(run)
    check_free(labels_root, label_run)
    staging = labels_root if remote(run) else labels_root / f".{label_run}.tmp"
    if remote(run):
        write_text(run / _COPYING, "")
    else:
        shutil.rmtree(staging, ignore_errors=True)
    taken = {}
    for shard in label_shards(labels_root, label_run=corrects):
        place = _place(shard)
        assert place is not None
        taken.update(_named(shard))
        renamed = _with_run(read_label_table(shard), label_run)
        write_table(renamed, staging / label_run / _SHARDS / place.dataset / place.split / shard.name)
    _write_by_split(staging, label_run, rows)
    write_record(staging, label_run, {**record, CORRECTS: corrects, _TAKEN: taken})
    if remote(run):
        (run / _COPYING).unlink()
        return
    shutil.rmtree(staging / label_run / _STAGING, ignore_errors=True)
    (staging / label_run).rename(run)
    shutil.rmtree(staging)


def add_corrections(labels_root: Path, label_run: str, rows: Sequence[LabelRow]) -> bool:
    """Add rows to a run that `write_correction` made, after whatever the corrected run got since then.

    Of that, parts that were corrected here stay as they were corrected. Small shards of corrections are merged.

    Args:
        rows: of one data set and label_run.

    Returns whether the corrected run had new rows. Raises DataError for a damaged shard, DgreidError when another
    process is writing or the place cannot be written; then no row was added.
    """
    with writer_lock(labels_root, label_run, rows[0].dataset):
        grown = _take_over(labels_root, label_run, rows[0].dataset)
        _write_by_split(labels_root, label_run, rows)
    return grown


def _take_over(labels_root: Path, label_run: str, dataset: str) -> bool:
    """Copy the newest rows of the corrected run's new shards, except of parts that a person decided here."""
    record = read_record(labels_root, label_run) or {}
    corrects = str(record.get(CORRECTS, ""))
    own = label_shards(labels_root, label_run=label_run, dataset=dataset)
    others = label_shards(labels_root, label_run=corrects, dataset=dataset) if corrects else []
    names = {path.relative_to(path.parents[2]).as_posix() for path in own}
    # of a version that kept no list: a shard was taken over under its name
    taken = record.get(_TAKEN) or {key: size for path in others for key, size in _named(path).items() if key in names}
    new = [path for path in others if taken.items().isdisjoint(_named(path).items())]
    if not new:
        return False
    with connect(labels=own) as here, connect(labels=new) as there:
        decided = here.sql(
            f"select image_id, part from labels where list_has_any(flags, ['{CORRECTED}', '{ACCEPTED}'])"
        )
        there.register("decided", decided.to_arrow_table())
        found = there.sql("from labels anti join decided using (image_id, part)").to_arrow_table().cast(LABEL_SCHEMA)
    for split in pc.unique(found["split"]).to_pylist():
        chosen = _with_run(found.filter(pc.equal(found["split"], split)), label_run)
        write_label_table(chosen, label_folder(labels_root, label_run, dataset, split))
    seen = {key: size for path in others for key, size in _named(path).items()}
    record.pop("label_run", None)
    write_record(labels_root, label_run, {**record, _TAKEN: {**taken, **seen}})
    return True


def _write_by_split(labels_root: Path, label_run: str, rows: Sequence[LabelRow]) -> None:
    """The rows, as the newest of their data set; onto its last shard where that is a small one of the same engine."""
    for split in sorted({row.split for row in rows}):
        chosen = [row for row in rows if row.split == split]
        folder = label_folder(labels_root, label_run, chosen[0].dataset, split)
        table = to_table(chosen, LABEL_SCHEMA)
        shards = label_shards(labels_root, label_run=label_run, dataset=chosen[0].dataset)
        if shards and (last := shards[-1]).parent == folder:
            before = read_label_table(last)
            engines = set(pc.unique(pa.chunked_array([*before["engine"].chunks, *table["engine"].chunks])).to_pylist())
            in_order = pc.max(before["created_at"]).as_py() <= pc.min(table["created_at"]).as_py()
            if len(before) < _MERGED_ROWS and len(engines) == 1 and in_order:
                staging = run_folder(labels_root, label_run) / _STAGING / chosen[0].dataset
                write_table(pa.concat_tables([before, table]), last, staging=staging)
                continue
        write_label_table(table, folder)


def _with_run(table: pa.Table, label_run: str) -> pa.Table:
    index = table.schema.get_field_index("label_run")
    return table.set_column(index, table.schema.field(index), pa.array([label_run] * len(table), pa.string()))


def _named(shard: Path) -> dict[str, int]:
    """<data set>/<split>/<file> -> its bytes."""
    place = _place(shard)
    assert place is not None
    return {f"{place.dataset}/{place.split}/{shard.name}": shard.stat().st_size}


# ---- shards


def label_folder(labels_root: Path, label_run: str, dataset: str, split: str) -> Path:
    """Where the shards of one (label run, data set, split) are written."""
    run = run_folder(labels_root, label_run)
    return run / f"dataset={dataset}" / f"split={split}" if _is_old(run) else run / _SHARDS / dataset / split


def label_shards(labels_root: Path, *, label_run: str = "*", dataset: str = "*") -> list[Path]:
    """Finished shards of one or all label runs and data sets, ordered by run, data set, number and split."""
    runs = [run_folder(labels_root, label_run)] if label_run != "*" else _run_folders(labels_root)
    found = []
    for run in runs:
        if remote(run) and (run / _COPYING).exists():
            continue
        pattern = "dataset=*/split=*/part-*" if _is_old(run) else f"{_SHARDS}/*/*/part-*"
        for path in run.glob(pattern):
            place = _place(path)
            if path.suffix != ".parquet" or place is None or dataset not in ("*", place.dataset):
                continue
            if place.number is None:
                _warn_of(path)
            else:
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
    inside = folder.parent.parent.name == _SHARDS
    write_table(table, path, staging=folder.parents[2] / _STAGING / folder.parent.name if inside else None)
    return path


def staged_shard(labels_root: Path, label_run: str, dataset: str, split: str, number: int) -> Path:
    """Where a shard is written that `replace_shards` will put into the store; gone when the lock is given back."""
    return run_folder(labels_root, label_run) / _STAGING / dataset / split / f"part-{number:05d}.parquet"


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
    places = [place for path in old if (place := _place(path))]
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


# ---- SQL

_AGE = (  # 1 for the row of an (image, part) that counts
    "row_number() over (partition by label_run, dataset, image_id, part order by "
    "cast(regexp_extract(filename, 'part-([0-9]+)[.]parquet$', 1) as integer) desc, created_at desc, "
    "file_row_number desc)"
)


def superseded_rows(shards: Sequence[Path]) -> dict[Path, list[int]]:
    """By shard, the positions of the rows that a newer one has taken the place of; shards without any are left out."""
    query = f"select filename, file_row_number from _shards qualify {_AGE} > 1 order by all"
    found: dict[Path, list[int]] = {}
    path_of = {str(path): path for path in shards}
    with connect(labels=shards) as connection:
        for name, position in connection.execute(query).fetchall() if shards else ():
            found.setdefault(path_of[name], []).append(position)
    return found


def connect(
    *,
    manifests: Sequence[Path] = (),
    labels: Sequence[Path] = (),
    only_these_files: bool = False,
    loaded: bool = False,
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with views over the given Parquet files:

    manifest: one row per file of a data set. labels: one row per (label run, data set, image, part), the newest.
    label_rows: all rows, those of earlier attempts too. parts: `labels` joined with `manifest`, one row per (label run,
    file, part), with the file's own split and path, identity, camera, the box relative to the image (rel_x_min ..
    rel_y_max, in [0, 1]) and its area in pixels (area) and relative to the image (rel_area).

    Without files a view is empty but has its columns. Times are UTC.

    Args:
        only_these_files: queries may read no other file and load no extension.
        loaded: read the files once, into tables of the same names; `only_these_files` then means none.

    Raises DataError for a file that is damaged or of another version, and for a shard that is not where it belongs.
    """
    for path in manifests:
        check_file(path, MANIFEST_SCHEMA, fix=f"dgreid manifest {path.stem}")
    there = next(filter(None, map(remote, (*manifests, *labels))), None)
    if there:
        with ThreadPool(THREADS) as pool:
            pool.map(check_shard, labels, chunksize=1)
    else:
        for path in labels:
            check_shard(path)
    connection = duckdb.connect()
    if there:
        connection.register_filesystem(there.filesystem)
    connection.execute("set TimeZone='UTC'")
    create = "create table" if loaded else "create view"
    _view(connection, "_manifest" if loaded else "manifest", manifests, MANIFEST_SCHEMA)
    if loaded:
        connection.execute("create table manifest as from _manifest")
    if labels:
        names = ", ".join(_quoted(path) for path in labels)
        connection.execute(
            f"create view _shards as from read_parquet([{names}], hive_partitioning=false, filename=true, "
            "file_row_number=true)"
        )
        connection.execute(f"{create} label_rows as select * exclude (filename, file_row_number) from _shards")
        connection.execute(
            f"{create} labels as select * exclude (filename, file_row_number) from _shards qualify {_AGE} = 1"
        )
    else:
        _view(connection, "_label_rows" if loaded else "label_rows", (), LABEL_SCHEMA)
        if loaded:
            connection.execute("create table label_rows as from _label_rows")
        connection.execute(f"{create} labels as from label_rows")
    of_manifest = ", ".join(
        f"manifest.{name}" for name in MANIFEST_SCHEMA.names if name not in (*LABEL_SCHEMA.names, *_NOT_IN_PARTS)
    )
    connection.execute(
        "create view parts as select labels.* replace (coalesce(manifest.split, labels.split) as split, "
        f"coalesce(manifest.path, labels.path) as path), {of_manifest}, "
        "labels.x_min / labels.width as rel_x_min, labels.y_min / labels.height as rel_y_min, "
        "labels.x_max / labels.width as rel_x_max, labels.y_max / labels.height as rel_y_max, "
        "(labels.x_max - labels.x_min) * (labels.y_max - labels.y_min) as area, "
        "area / (labels.width * labels.height) as rel_area "
        "from labels left join manifest using (dataset, image_id)"
    )
    if only_these_files:
        _confine(connection, [] if loaded else [*manifests, *labels])
    return connection


def _view(connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path], schema: pa.Schema) -> None:
    if files:
        connection.read_parquet([str(path) for path in files], hive_partitioning=False).create_view(name)
    else:
        connection.register(name, schema.empty_table())


def _confine(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> None:
    connection.execute(f"set allowed_paths=[{', '.join(_quoted(path) for path in files)}]")
    for setting, value in (
        ("autoinstall_known_extensions", "false"),
        ("autoload_known_extensions", "false"),
        ("python_enable_replacements", "false"),  # names of our own variables as tables
        ("enable_external_access", "false"),
        ("lock_configuration", "true"),
    ):
        connection.execute(f"set {setting}={value}")


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


# ---- the layout on disk


@dataclass(frozen=True)
class _Place:
    label_run: str
    dataset: str
    split: str
    number: int | None  # None: the file's name is not a shard's


def _place(path: Path) -> _Place | None:
    """What a shard's path says that it holds; None for a file that is not in a label store."""
    if len(path.parts) < 4:
        return None
    above, dataset, split, name = path.parts[-4:]
    match = _SHARD.fullmatch(name)
    number = int(match[1]) if match else None
    if above == _SHARDS and len(path.parts) > 4:
        return _Place(path.parts[-5], dataset, split, number)
    pairs = [part.partition("=") for part in (above, dataset, split)]
    if [key for key, _, _ in pairs] == ["label_run", "dataset", "split"]:
        (_, _, run), (_, _, dataset), (_, _, split) = pairs
        return _Place(run, dataset, split, number)
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
            raise ValueError("a split that is no plain name")
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


@functools.cache
def _warn_of(path: Path) -> None:
    log.warning("not a shard of the label store, left out: %s", path)


def _check_values(table: pa.Table, path: Path) -> None:
    place, statuses = _place(path), [str(status) for status in LabelStatus]
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
