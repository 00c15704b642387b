"""SQL over labels: DuckDB views of shards and manifests, and the newest rows as an Arrow table."""

from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared.duckdb_session import open_session
from shared.errors import DataError
from shared.labels.store import check_shard, choose_label_run, label_shards
from shared.object_storage import THREADS, remote
from shared.parquet import check_file
from shared.schemas import LABEL_SCHEMA, MANIFEST_SCHEMA, PARTS
from shared.workspace import Workspace

_NOT_IN_PARTS = ("status", "reason", "size_bytes", "modified_ns")  # columns of the manifest that say nothing of a part
AGE = (  # 1 for the row of an (image, part) that counts
    "row_number() over (partition by label_run, dataset, image_id, part order by "
    "cast(regexp_extract(filename, 'part-([0-9]+)[.]parquet$', 1) as integer) desc, created_at desc, "
    "file_row_number desc)"
)

_CORNERS = ("x_min", "y_min", "x_max", "y_max")
IMPOSSIBLE = {  # what no row of ours is -> an SQL condition over the columns of a label row
    "boxes that are missing, infinite or outside their image": "status = 'ok' and not coalesce("
    + " and ".join(f"isfinite({corner})" for corner in _CORNERS)
    + " and 0 <= x_min and x_min < x_max and x_max <= width and 0 <= y_min and y_min < y_max and y_max <= height, "
    "false)",
    "boxes within the first pixel, as shares of the image are": "status = 'ok' and greatest(x_max, y_max) <= 1",
    "boxes of parts that are not ok": f"status != 'ok' and coalesce({', '.join(_CORNERS)}) is not null",
    "scores or agreements outside 0 to 1": "not coalesce(score between 0 and 1, true) "
    "or not coalesce(agreement between 0 and 1, true)",
}
_WHEN = " ".join(f"when {rule} then '{told}'" for told, rule in IMPOSSIBLE.items())
WRONG = f"case {_WHEN} end"  # NULL: nothing


def refuse_impossible(wrong: pa.ChunkedArray, label_run: str, place: Callable[[int], tuple[str, str]]) -> None:
    """Raises DataError for a row with something WRONG.

    Args:
        wrong: of each row what is, text [N].
        place: row -> its data set, and a text that says which image and part it is.
    """
    rows = np.flatnonzero(pc.is_valid(wrong).to_numpy())
    if len(rows):
        dataset, where = place(int(rows[0]))
        raise DataError(
            f"label run {label_run!r} has {len(rows):,} rows that cannot be used, e.g. {where}: "
            f"{wrong[int(rows[0])].as_py()}",
            fix=f"dgreid verify-labels {dataset} --label-run {label_run}",
        )


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
    Raises DataError when there are no labels, or a shard is damaged or has boxes that cannot be; ConfigError for an
    unknown data set or label run, or when there are several runs to choose from.
    """
    workspace = workspace or Workspace.from_environment()
    if not label_shards(workspace.labels, dataset=dataset):
        from shared.datasets import resolve_name

        dataset = resolve_name(dataset, workspace.data_root)
    return newest_labels(workspace.labels, choose_label_run(label_run, [dataset], workspace.labels), dataset)


def newest_labels(labels_root: Path, label_run: str, dataset: str) -> pa.Table:
    """`read` for names that are known to be right. Raises DataError for a damaged shard, and for what is IMPOSSIBLE."""
    shards = label_shards(labels_root, label_run=label_run, dataset=dataset)
    order = ", ".join(f"'{part}'" for part in PARTS)
    with connect(labels=shards) as connection:
        found = connection.sql(
            f"select *, {WRONG} as wrong from labels "
            f"order by path, coalesce(list_position([{order}], part), {len(PARTS) + 1}), part"
        ).to_arrow_table()
    table = found.drop_columns(["wrong"]).cast(LABEL_SCHEMA)
    refuse_impossible(found["wrong"], label_run, lambda row: (dataset, f"{table['path'][row]}, {table['part'][row]}"))
    return table


def superseded_rows(shards: Sequence[Path]) -> dict[Path, list[int]]:
    """By shard, the positions of the rows that a newer one has taken the place of; shards without any are left out."""
    query = f"select filename, file_row_number from _shards qualify {AGE} > 1 order by all"
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
    connection = open_session()
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
            f"{create} labels as select * exclude (filename, file_row_number) from _shards qualify {AGE} = 1"
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
