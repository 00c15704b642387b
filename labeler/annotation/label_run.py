"""A label run on disk: what produced it, which rows it has, and the lock of its writer."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa

from labeler.grounding.answers import BOUND_TO, LabelSource
from shared.errors import ConfigError, DataError
from shared.labels import AGE, check_name, connect, label_shards, read_record, record_path, run_folder, write_record
from shared.object_storage import StorageError, remote
from shared.schemas import FINAL_STATUSES

_MEMORY = "128MB"  # of DuckDB, for what is finished
_GROUPS_AT_ONCE = 2**16


def default_label_run(info: LabelSource) -> str:
    """A name from engine, model, prompt version and the rules that add to one answer."""
    words = (
        info.engine,
        info.model.rsplit("/", 1)[-1],
        *(() if info.prompt_version == "none" else (info.prompt_version,)),
        *(("filled",) if info.missing_parts == "prior" else ()),
        *(("second-look",) if info.second_look else ()),
    )
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words))[:120].strip("-.")


def open_label_run(labels_root: Path, label_run: str, info: LabelSource) -> None:
    """Record engine, model, prompt version, parts and rules of a new run, or check them against those of an old one.

    Raises ConfigError for an invalid name, for every difference, and for rows of others in a run without a record;
    DataError for a damaged record or shard.
    """
    check_name(label_run)
    now = json.loads(info.model_dump_json(include=set(BOUND_TO)))
    before = read_record(labels_root, label_run)
    if before is None:
        _refuse_rows_of_others(labels_root, label_run, now)
        write_record(labels_root, label_run, {**now, "started": datetime.now(UTC).isoformat(timespec="seconds")})
        return
    differing = [f"{key} {before.get(key)!r} -> {now[key]!r}" for key in BOUND_TO if before.get(key) != now[key]]
    if differing:
        raise ConfigError(
            f"the label run {label_run!r} was made with other settings: {'; '.join(differing)}",
            path=record_path(labels_root, label_run),
            fix="use another label run name, or the engine, model, prompt and rules it was started with",
        )


def _refuse_rows_of_others(labels_root: Path, label_run: str, now: Mapping[str, object]) -> None:
    names = ("engine", "model", "prompt_version")
    shards = label_shards(labels_root, label_run=label_run)
    with _shards_of(labels_root, label_run), connect(labels=shards) as connection:
        found = connection.execute(f"select distinct {', '.join(names)} from label_rows order by all").fetchall()
    others = [made_by for made_by in found if made_by != tuple(now[name] for name in names)]
    if others:
        told = ", ".join(f"{name} {value!r}" for name, value in zip(names, others[0], strict=True))
        raise ConfigError(
            f"the label run {label_run!r} has rows of {told}, and no record of what made it",
            path=record_path(labels_root, label_run),
            fix="use another label run name",
        )


def finished_parts(
    labels_root: Path, label_run: str, dataset: str, parts: Sequence[str], *, final_only: bool
) -> Iterator[pa.RecordBatch]:
    """Parts that need no further question: tables of image_id and parts (bit i: the i-th of `parts`).

    With `final_only` a part whose newest row is a failure is not finished; otherwise every row counts.
    Raises DataError for a damaged shard, when the first table is asked for.
    """
    shards = label_shards(labels_root, label_run=label_run, dataset=dataset)
    if not shards:
        return  # a first session needs no database
    bits = " ".join(f"when '{part}' then {1 << number}" for number, part in enumerate(parts))
    finals = ", ".join(f"'{status}'" for status in sorted(FINAL_STATUSES))
    rows = f"labels where status in ({finals})" if final_only else "label_rows"
    query = f"select image_id, cast(bit_or(case part {bits} else 0 end) as uinteger) as parts from {rows} group by all"
    with _shards_of(labels_root, label_run), connect(labels=shards) as connection, TemporaryDirectory() as spilled:
        connection.execute(f"set memory_limit='{_MEMORY}'")  # millions of groups go to disk
        connection.execute("set temp_directory=$folder", {"folder": spilled})
        yield from connection.sql(query).to_arrow_reader(_GROUPS_AT_ONCE)


@dataclass(frozen=True)
class StandingFailures:
    """What has no final answer in a label run, whenever it was asked; identical files are one image."""

    images: int
    parts: Counter[str]  # (image, part) pairs by status

    def __str__(self) -> str:
        total = self.parts.total()
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.parts.most_common())
        images = f"{self.images:,} image{'s' if self.images != 1 else ''}"
        return f"{images} ({total:,} part{'s' if total != 1 else ''}: {kinds})"


def standing_failures(labels_root: Path, label_run: str, dataset: str, manifest: Path) -> StandingFailures:
    """The failures that are the newest answers about the images of a manifest file.

    Raises DataError for a damaged shard or manifest.
    """
    finals = ", ".join(repr(str(status)) for status in sorted(FINAL_STATUSES))
    query = (  # the newest rows of images that ever failed: those of all images would be held at once
        f"with ever as (select distinct image_id from _shards where status not in ({finals})), "
        f"newest as (select image_id, status from _shards semi join ever using (image_id) qualify {AGE} = 1), "
        f"failed as (select image_id, status from newest where status not in ({finals}) "
        "and image_id in (select image_id from manifest)) "
        "select status, count(*), (select count(distinct image_id) from failed) from failed group by status"
    )
    shards = label_shards(labels_root, label_run=label_run, dataset=dataset)
    if not shards:
        return StandingFailures(0, Counter())
    with _shards_of(labels_root, label_run), connect(manifests=[manifest], labels=shards) as connection:
        rows = connection.execute(query).fetchall()
    return StandingFailures(rows[0][2] if rows else 0, Counter({status: count for status, count, _ in rows}))


@contextmanager
def _shards_of(labels_root: Path, label_run: str) -> Iterator[None]:
    """Raises DataError for what DuckDB cannot read."""
    try:
        yield
    except duckdb.Error as err:
        if there := remote(labels_root):
            raise StorageError(
                f"the shards of this label run cannot be read ({str(err).splitlines()[0][:200]})",
                path=str(there / label_run),
                fix="run the same command again; dgreid verify-labels says whether a shard is damaged",
            ) from err
        raise DataError(
            f"a shard of this label run cannot be read ({str(err).splitlines()[0][:200]})",
            path=run_folder(labels_root, label_run),
            fix="delete the damaged shard and run the same dgreid label command again",
        ) from err
