"""What the page shows, asked with SQL: images by query and facet, their boxes, how runs agree, counts.

Manifests and label shards are read once, into DuckDB tables in memory, and again when files were added or changed. On
top of the views of `shared.labels.connect` there are two tables of the label run that is looked at:

    _rows    one row per (file, part); a file without labels has one, of the part "none"
    _images  one row per image with what it is sorted by
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

import duckdb
import pyarrow as pa

from labeler.quality import list_queries, run_query
from shared.errors import DataError, UsageError
from shared.labels import ACCEPTED, CORRECTED, CORRECTS, connect, label_runs, label_shards, read_record
from shared.manifest import read_manifest
from shared.parquet import to_table
from shared.schemas import LABEL_SCHEMA, PARTS, ImageStatus, LabelRow, ManifestRow
from shared.workspace import Workspace

log = logging.getLogger(__name__)

FACETS = {  # as on the page -> SQL over manifest m and label l
    "part": "coalesce(l.part, 'none')",
    "status": "coalesce(l.status, 'no label')",
    "flag": "case when coalesce(len(l.flags), 0) = 0 then ['none'] else l.flags end",
    "review": f"case when list_contains(l.flags, '{CORRECTED}') then 'corrected' "
    f"when list_contains(l.flags, '{ACCEPTED}') then 'accepted' else 'open' end",
    "camera": "coalesce(m.camera_name, cast(m.camera as varchar), 'unknown')",
    "split": "m.split",
    "score": "case when l.score is null then 'none' else format('{:.1f} to {:.1f}', "
    "floor(least(l.score, 0.999) * 10) / 10, floor(least(l.score, 0.999) * 10) / 10 + 0.1) end",
    "agreement": "case when l.agreement is null then 'none' else format('{:.1f} to {:.1f}', "
    "floor(least(l.agreement, 0.999) * 10) / 10, floor(least(l.agreement, 0.999) * 10) / 10 + 0.1) end",
    "identity": "coalesce(m.identity_name, cast(m.identity as varchar), m.kind)",
}
MAX_VALUES = 30  # of one facet on the page
SORTS = {  # as on the page -> SQL over _images
    "doubt": "doubt desc, path",
    "path": "path",
    "score": "score asc nulls last, path",
    "agreement": "agreement asc nulls last, path",
    "sample": "sample",
}
# What makes a person look: a failed part counts most, then a broken relation, then how far the box is from where this
# part usually is (in image sizes), and what the engine doubts itself.
_DOUBT = """
create or replace table _images as
with relative as (
    select image_id, path, part, status, flags, score, agreement, (x_min + x_max) / 2 / width as cx,
        (y_min + y_max) / 2 / height as cy, (x_max - x_min) / width as w, (y_max - y_min) / height as h
    from _rows
), medians as (
    select part, median(cx) as mx, median(cy) as my, median(w) as mw, median(h) as mh
    from relative where status = 'ok' group by part
)
select image_id, min(path) as path, min(score) as score, min(agreement) as agreement,
    md5(image_id || 'sample') as sample,
    3.0 * count(distinct part) filter (status not in ('ok', 'absent'))
    + 1.0 * coalesce(bool_or(list_has_any(flags, ['order', 'duplicate', 'ambiguous']))::int, 0)
    + coalesce(max(abs(cx - mx) + abs(cy - my) + abs(w - mw) + abs(h - mh)), 0)
    + coalesce(1 - min(score), 0) + coalesce(1 - min(agreement), 0) as doubt
from relative left join medians using (part) group by image_id
"""
_REVIEW_ROWS = (
    "select m.dataset, m.image_id, m.path, m.width, m.height, coalesce(l.part, 'none') as part, "
    "coalesce(l.status, 'no label') as status, l.x_min, l.y_min, l.x_max, l.y_max, coalesce(l.flags, []) as flags, "
    "l.score, l.agreement, "
    + ", ".join(f"{sql} as f_{name}" for name, sql in FACETS.items())
    + " from manifest m left join (from labels where label_run = $run) l using (dataset, image_id)"
)
RESULTS_KEPT = 32


@dataclass(frozen=True)
class Asked:
    """A question of the grid. facets: name -> wanted values, any of them; all facets must hold for one label row."""

    query: str = ""  # one SELECT or a canned query's name; "": all images
    sort: str = ""  # of SORTS; "": as the query gives them, else by doubt
    facets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    picked: str = ""  # key of a set of images that was picked on another page


class UnknownImageError(UsageError):
    """No image of the data sets has this image_id."""


class LabelTables:
    """Args:
        workspace: where manifests and labels lie.
        datasets: canonical names; their manifests exist.
        label_run: the run that is looked at; None: there are no labels.

    Raises DataError when a manifest or a shard is damaged.
    """

    def __init__(self, workspace: Workspace, datasets: Sequence[str], label_run: str | None) -> None:
        self.workspace, self.datasets, self.label_run = workspace, tuple(datasets), label_run
        self._lock = RLock()
        self._results: OrderedDict[str, list[str]] = OrderedDict()
        self._picked: OrderedDict[str, list[str]] = OrderedDict()
        self.images: dict[str, ManifestRow] = {}
        for name in self.datasets:
            for row in read_manifest(workspace.manifest(name)):
                self.images.setdefault(row.image_id, row)
        self.reload()

    # ---- the tables

    def reload(self) -> None:
        """Read everything again."""
        with self._lock:
            self._seen = self._on_disk()
            shards = [path for path, _, _ in self._seen]
            manifests = [self.workspace.manifest(name) for name in self.datasets]
            self._db = connect(manifests=manifests, labels=shards, only_these_files=True, loaded=True)
            self.runs = label_runs(self.workspace.labels, self.datasets)
            record = read_record(self.workspace.labels, self.label_run) if self.label_run else None
            self.corrects = str(record[CORRECTS]) if record and CORRECTS in record else None
            found = self._all("select distinct part from labels where label_run = $run")
            known = {part for (part,) in found} or set(PARTS)
            self.parts = tuple(part for part in PARTS if part in known) + tuple(sorted(known - set(PARTS)))
            self._db.execute(f"create or replace table _rows as {_REVIEW_ROWS}", {"run": self.label_run})
            self._db.execute(_DOUBT)
            self._results.clear()

    def refresh(self) -> None:
        """Read again what others wrote meanwhile."""
        with self._lock:
            if self._on_disk() != self._seen:
                self.reload()

    def replace(self, rows: Sequence[LabelRow]) -> None:
        """Show newer rows of the label run, which are on disk already."""
        with self._lock:
            self._seen = self._on_disk()
            new = to_table(rows, LABEL_SCHEMA)
            cursor = self._db.cursor()
            cursor.register("new_rows", new)
            cursor.execute("insert into label_rows by name from new_rows")
            cursor.execute(
                "delete from labels using new_rows n where labels.label_run = n.label_run and labels.dataset = "
                "n.dataset and labels.image_id = n.image_id and labels.part = n.part"
            )
            cursor.execute("insert into labels by name from new_rows")
            changed = sorted({row.image_id for row in rows})
            cursor.execute("delete from _rows where image_id in (select unnest(?))", [changed])
            cursor.execute(
                f"insert into _rows {_REVIEW_ROWS} where m.image_id in (select unnest($ids))",
                {"run": self.label_run, "ids": changed},
            )

    def _on_disk(self) -> list[tuple[Path, int, int]]:
        shards = [shard for name in self.datasets for shard in label_shards(self.workspace.labels, dataset=name)]
        return [(path, status.st_size, status.st_mtime_ns) for path in shards if (status := path.stat())]

    def _all(self, sql: str, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        given = {"run": self.label_run, **(values or {})}
        used = {name: value for name, value in given.items() if f"${name}" in sql}
        rows: list[tuple[Any, ...]] = self._db.cursor().execute(sql, used or None).fetchall()
        return rows

    # ---- the grid

    def find(self, asked: Asked, *, anew: bool = False) -> tuple[str, list[str]]:
        """A key of the answer, and its image_ids in order, as they were when the question was first asked.

        Args:
            anew: as they are now.

        Raises UsageError for a query that fails or names no image, an unknown facet or sort.
        """
        key = hashlib.sha256(repr((asked, sorted(asked.facets.items()))).encode()).hexdigest()[:16]
        with self._lock:
            if anew or key not in self._results:
                self._results[key] = self._find(asked)
                while len(self._results) > RESULTS_KEPT:
                    self._results.popitem(last=False)
            self._results.move_to_end(key)
            return key, self._results[key]

    def keep(self, key: str, image_ids: list[str]) -> None:
        """Answer a question as before, although labels have changed."""
        with self._lock:
            self._results[key] = image_ids

    def pick(self, image_ids: Iterable[str]) -> str:
        """The key, for `Asked.picked`, of some images; unknown ones are left out."""
        known = [image for image in image_ids if image in self.images]
        key = hashlib.sha256("".join(known).encode()).hexdigest()[:16]
        with self._lock:
            self._picked[key] = known
            while len(self._picked) > RESULTS_KEPT:
                self._picked.popitem(last=False)
        return key

    def _find(self, asked: Asked) -> list[str]:
        with self._lock:
            cursor, given = self._asked(asked)
            if asked.sort and asked.sort not in SORTS:
                raise UsageError(f"unknown order {asked.sort!r}", fix=f"choose one of {', '.join(SORTS)}")
            condition, values = _condition(asked.facets)
            order = SORTS[asked.sort] if asked.sort else "place" if given else SORTS["doubt"]
            return [
                image
                for (image,) in cursor.execute(
                    f"select image_id from _images {'join _asked using (image_id)' if given else ''} "
                    f"where image_id in (select image_id from _rows where {condition}) order by {order}",
                    values,
                ).fetchall()
            ]

    def facets(self, asked: Asked) -> dict[str, list[tuple[str, int, bool]]]:
        """Facet -> values with the number of images that they would leave, and whether they are wanted now."""
        with self._lock:
            cursor, given = self._asked(asked)
            found = {}
            for name in FACETS:
                others = {facet: values for facet, values in asked.facets.items() if facet != name}
                condition, values = _condition(others)
                value = "unnest(f_flag)" if name == "flag" else f"f_{name}"
                rows = cursor.execute(
                    f"select value, count(distinct image_id) from (select {value} as value, image_id from _rows "
                    f"{'join _asked using (image_id)' if given else ''} where {condition}) group by value "
                    f"order by 2 desc, 1 limit {MAX_VALUES}",
                    values,
                ).fetchall()
                wanted = asked.facets.get(name, ())
                counts = {**dict.fromkeys(wanted, 0), **{str(value): count for value, count in rows}}
                order = sorted(counts) if name in ("camera", "score", "agreement") else list(counts)
                found[name] = [(value, counts[value], value in wanted) for value in order]
            return found

    def _asked(self, asked: Asked) -> tuple[duckdb.DuckDBPyConnection, bool]:
        """A cursor, which has the images of the query as `_asked` (image_id, place) where there is one."""
        cursor = self._db.cursor()
        if asked.picked:
            if asked.picked not in self._picked:
                raise UsageError("these images were picked before the page was started again", fix="pick them again")
            ids = [(image, place) for place, image in enumerate(self._picked[asked.picked])]
        elif asked.query.strip():
            ids = self._of_query(cursor, asked.query)
        else:
            return cursor, False
        table = pa.table(
            {"image_id": pa.array([i for i, _ in ids], pa.string()), "place": pa.array([p for _, p in ids], pa.int64())}
        )
        cursor.register("_asked", table)
        return cursor, True

    def _of_query(self, cursor: duckdb.DuckDBPyConnection, query: str) -> list[tuple[str, int]]:
        found = run_query(cursor, query)
        names = set(found.column_names)
        if "image_id" in names:
            images = found["image_id"].to_pylist()
        elif "path" in names and ("dataset" in names or len(self.datasets) == 1):
            paths = found["path"].to_pylist()
            sets = found["dataset"].to_pylist() if "dataset" in names else [self.datasets[0]] * len(paths)
            known = {
                (name, path): image for name, path, image in self._all("select dataset, path, image_id from manifest")
            }
            images = [known.get(pair) for pair in zip(sets, paths, strict=True)]
        else:
            raise UsageError(
                "the query names no images",
                fix="select image_id, or dataset and path: select distinct image_id from labels",
            )
        return [(image, place) for place, image in enumerate(dict.fromkeys(images)) if image in self.images]

    # ---- images

    def row(self, image_id: str) -> ManifestRow:
        """Raises UnknownImageError."""
        if image_id not in self.images:
            raise UnknownImageError("no image has this image_id", fix="open it from the grid")
        return self.images[image_id]

    def tiles(self, image_ids: Sequence[str]) -> list[dict[str, Any]]:
        """What the grid shows of images, in the given order; boxes relative to the image, in 0..1."""
        rows = self._all(
            "select image_id, part, status, x_min / width, y_min / height, x_max / width, y_max / height, flags, score "
            "from _rows where image_id in (select unnest($ids))",
            {"ids": list(image_ids)},
        )
        parts: dict[str, dict[str, dict[str, Any]]] = {image: {} for image in image_ids}
        for image, part, status, *box, flags, score in rows:
            told = {"status": status, "flags": flags, "score": score}
            parts[image][part] = told | ({"box": [round(v, 4) for v in box]} if status == "ok" else {})
        tiles = []
        for image in image_ids:
            row, found = self.images[image], parts[image]
            flags = {flag for part in found.values() for flag in part["flags"]}
            tiles.append(
                {
                    "id": image,
                    "path": row.path,
                    "width": row.width,
                    "height": row.height,
                    "readable": row.status == ImageStatus.OK,
                    "boxes": {part: one["box"] for part, one in found.items() if "box" in one},
                    "problems": [f"{part}: {one['status']}" for part, one in found.items() if one["status"] != "ok"],
                    "review": "corrected" if CORRECTED in flags else "accepted" if ACCEPTED in flags else "open",
                }
            )
        return tiles

    def label_rows(self, image_id: str) -> dict[str, LabelRow]:
        """Part -> the row that counts, of the label run."""
        row = self.row(image_id)
        found = self._db.cursor().sql(
            "from labels where label_run = $run and dataset = $dataset and image_id = $id",
            params={"run": self.label_run, "dataset": row.dataset, "id": image_id},
        )
        return {entry["part"]: LabelRow(**entry) for entry in found.to_arrow_table().cast(LABEL_SCHEMA).to_pylist()}

    def other_runs(self, image_id: str) -> dict[str, dict[str, list[float]]]:
        """Label run -> part -> box in pixels, of all runs."""
        found: dict[str, dict[str, list[float]]] = {}
        for run, part, *box in self._all(
            "select label_run, part, x_min, y_min, x_max, y_max from labels where image_id = $id "
            "and dataset = $dataset and status = 'ok' order by label_run",
            {"id": image_id, "dataset": self.row(image_id).dataset},
        ):
            found.setdefault(run, {})[part] = box
        return found

    def history(self, image_id: str) -> list[tuple[Any, ...]]:
        """(time, part, status, engine, model) of the label run's rows of an image, newest first."""
        return self._all(
            "select strftime(created_at, '%Y-%m-%d %H:%M:%S'), part, status, engine, model from label_rows where "
            "label_run = $run and image_id = $id and dataset = $dataset order by created_at desc limit 12",
            {"id": image_id, "dataset": self.row(image_id).dataset},
        )

    def same_identity(self, image_id: str, limit: int = 24) -> list[str]:
        row = self.row(image_id)
        found = self._all(
            "select image_id from manifest where dataset = $dataset and identity = $identity and image_id <> $id "
            f"group by image_id order by min(path) limit {limit}",
            {"dataset": row.dataset, "identity": row.identity, "id": image_id},
        )
        return [image for (image,) in found]

    # ---- runs side by side

    def agreement(self) -> list[dict[str, Any]]:
        """Of every two label runs and part: images with both boxes, mean IoU, and images where only one has a box."""
        rows: list[dict[str, Any]] = run_query(self._db.cursor(), "compare_runs").to_pylist()
        return rows

    def compared(
        self, first: str, second: str, part: str, *, offset: int, limit: int
    ) -> tuple[list[dict[str, Any]], int]:
        """Images by the IoU of a part's boxes in two runs, lowest first; where only one has a box it is 0."""
        sql = f"""
            with pairs as (
                select a.image_id, a.part, [a.x_min, a.y_min, a.x_max, a.y_max] as box_a,
                    [b.x_min, b.y_min, b.x_max, b.y_max] as box_b, a.status as status_a, b.status as status_b,
                    greatest(0, least(a.x_max, b.x_max) - greatest(a.x_min, b.x_min))
                        * greatest(0, least(a.y_max, b.y_max) - greatest(a.y_min, b.y_min)) as overlap,
                    (a.x_max - a.x_min) * (a.y_max - a.y_min) as area_a,
                    (b.x_max - b.x_min) * (b.y_max - b.y_min) as area_b
                from labels a join labels b using (dataset, image_id, part)
                where a.label_run = $first and b.label_run = $second and ($part = '' or a.part = $part)
                    and (a.status = 'ok' or b.status = 'ok')
            )
            select image_id, part, status_a, status_b, box_a, box_b, count(*) over () as total,
                if(status_a = 'ok' and status_b = 'ok', overlap / (area_a + area_b - overlap), 0) as iou
            from pairs order by iou, image_id, part limit {int(limit)} offset {int(offset)}"""
        rows = self._all(sql, {"first": first, "second": second, "part": part})
        names = ("image_id", "part", "status_a", "status_b", "box_a", "box_b", "total", "iou")
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return found, (found[0]["total"] if found else 0)

    # ---- counts

    def cross_table(self, across: str, down: str) -> tuple[list[str], list[str], dict[tuple[str, str], int]]:
        """Images by two facets: values across, values down, (down, across) -> images."""
        column = {name: "unnest(f_flag)" if name == "flag" else f"f_{name}" for name in (across, down)}
        rows = self._all(
            f"select d, a, count(distinct image_id) from (select {column[down]} as d, {column[across]} as a, image_id "
            "from _rows) group by d, a"
        )
        counts = {(str(d), str(a)): count for d, a, count in rows}
        order = {name: place for place, name in enumerate(("ok", "absent", *PARTS))}
        by_order = lambda value: (order.get(value, 99), value.zfill(6) if value.isdigit() else value)  # noqa: E731
        return (
            sorted({a for _, a in counts}, key=by_order),
            sorted({d for d, _ in counts}, key=by_order),
            counts,
        )

    def without_box(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Camera -> part -> (images, images of these without a box)."""
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for camera, part, images, without in self._all(
            "select f_camera, part, count(distinct image_id), count(distinct image_id) filter (status <> 'ok') "
            "from _rows group by all order by f_camera"
        ):
            found.setdefault(camera, {})[part] = images, without
        return found

    def sample(self) -> tuple[list[tuple[int, int]], int]:
        """(boxes, wrong ones) of the images that were looked at in the order of the random sample, up to the first that
        was not; and how many images have boxes. Boxes are those of the run before it was corrected."""
        before = self.corrects or self.label_run
        rows = self._all(
            "select i.sample, count(*), count(*) filter (list_contains(now.flags, $corrected)), "
            "bool_and(list_has_any(now.flags, [$corrected, $accepted])) "
            "from (from labels where label_run = $before and status = 'ok') was "
            "join (from labels where label_run = $run) now using (dataset, image_id, part) "
            "join _images i using (image_id) group by i.sample order by i.sample",
            {"before": before, "corrected": CORRECTED, "accepted": ACCEPTED},
        )
        looked_at = []
        for _, boxes, wrong, done in rows:
            if not done:
                break
            looked_at.append((boxes, wrong))
        return looked_at, len(rows)

    def progress(self) -> dict[str, int]:
        """Images by what a person has said: open, accepted, corrected."""
        rows = self._all(
            "select case when bool_or(f_review = 'corrected') then 'corrected' when bool_and(f_review = 'accepted') "
            "then 'accepted' else 'open' end as said, count(*) from (select image_id, f_review from _rows) t "
            "group by image_id"
        )
        found = {"open": 0, "accepted": 0, "corrected": 0}
        for said, _ in rows:
            found[said] += 1
        return found


def canned_queries() -> dict[str, str]:
    """The canned queries that name images, and what each tells."""
    with connect() as empty:
        return {
            name: text
            for name, text in list_queries().items()
            if {"image_id", "path"} & set(run_query(empty, name).column_names)
        }


def _condition(facets: Mapping[str, tuple[str, ...]]) -> tuple[str, dict[str, Any]]:
    """SQL over _rows. Raises UsageError for an unknown facet."""
    terms, values = ["true"], {}
    for name, wanted in facets.items():
        if name not in FACETS:
            raise UsageError(f"unknown facet {name!r}", fix=f"choose of {', '.join(FACETS)}")
        if wanted:
            terms.append(f"list_has_any(f_flag, ${name})" if name == "flag" else f"list_contains(${name}, f_{name})")
            values[name] = list(wanted)
    return " and ".join(terms), values


def require_labels(tables: LabelTables) -> str:
    """The label run. Raises DataError when there is none."""
    if tables.label_run is None:
        names = "+".join(tables.datasets)
        raise DataError(f"{names} has no labels", path=tables.workspace.labels, fix=f"dgreid label {names}")
    return tables.label_run
