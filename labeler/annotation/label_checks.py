"""Whether a label run is whole: every image of the manifest has its rows, once, in undamaged shards, with boxes that
can be. Reads everything and changes nothing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DataError
from shared.images import UnreadableImageError, image_id_of, read_file
from shared.labels import CORRECTS, IMPOSSIBLE, connect, is_being_replaced, label_shards, read_label_table, read_record
from shared.schemas import FINAL_STATUSES, PARTS, ImageStatus, ManifestRow

_FINAL = ", ".join(repr(str(status)) for status in sorted(FINAL_STATUSES))
_WHERE = "path || ', ' || part"


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    count: int  # of rows, images or files that fail it
    example: str = ""
    fix: str = ""
    known: bool = False  # only told: an answer that failed is a row like any other


def check_labels(labels_root: Path, label_run: str, dataset: str, manifest: Path) -> list[Finding]:
    """Every check, also the ones that found nothing (count 0).

    Raises DataError when there are no labels, or the manifest or the run's record is damaged.
    """
    shards = label_shards(labels_root, label_run=label_run, dataset=dataset)
    if not shards:
        raise DataError(f"label run {label_run} has no labels of {dataset}", path=labels_root,
                        fix=f"dgreid label {dataset}")  # fmt: skip
    record = read_record(labels_root, label_run) or {}
    good, damaged = [], []
    for shard in shards:
        try:
            read_label_table(shard)  # every page, with its checksum
            good.append(shard)
        except DataError as err:
            damaged.append(f"{shard}: {err.what}")
    again = f"dgreid label {dataset} --label-run {label_run}"
    findings = [
        Finding("damaged or foreign shards", len(damaged), *_first(damaged), f"delete them, then {again}"),
        Finding("interrupted compaction", int(is_being_replaced(labels_root, label_run, dataset)), "",
                f"dgreid compact {dataset} --label-run {label_run}"),
    ]  # fmt: skip
    with connect(manifests=[manifest], labels=good) as connection:
        connection.execute("create temp table wanted_parts as select unnest(?::varchar[]) as part",
                           [list(record.get("parts") or PARTS)])  # fmt: skip
        for check, query, fix, known in _queries(record, again):
            count, example = connection.execute(f"select count(*), min(told) from ({query})").fetchone() or (0, None)
            findings.append(Finding(check, count, example or "", fix, known))
    return findings


def check_images(rows: Iterable[ManifestRow], root: Path, advance: Callable[[], None] = lambda: None) -> Finding:
    """Whether the files of a manifest still are what was labelled, by their SHA-256."""
    changed = []
    for row in rows:
        if row.status == ImageStatus.OK:
            try:
                if image_id_of(read_file(root / row.path)) != row.image_id:
                    changed.append(f"{row.path}: other content")
            except UnreadableImageError as err:
                changed.append(f"{row.path}: {err.reason}")
        advance()
    return Finding(
        "images that changed since the scan", len(changed), *_first(changed), "dgreid manifest, dgreid label"
    )


def _queries(record: dict[str, object], again: str) -> list[tuple[str, str, str, bool]]:
    """(what is wrong, a query with one row `told` for each, what to do, whether it is only told)."""
    ask, look = "delete the shards that hold them, then " + again, "look at these rows with dgreid sql"
    asked_again = (
        f"select any_value({_WHERE}) as told from label_rows group by label_run, dataset, image_id, part having "
        f"count(*) filter (status in ({_FINAL})) > 1"
    )
    found = [
        ("images and parts without a row",
         f"select {_WHERE} as told from (select image_id, min(path) as path from manifest group by image_id) "
         "cross join wanted_parts anti join labels using (image_id, part)", again, False),
        ("rows of images that the manifest does not have",
         f"select {_WHERE} as told from labels anti join manifest using (image_id)", "nothing, if the files were "
         "removed from the data set on purpose", True),
        ("rows of parts that the run does not have",
         f"select {_WHERE} as told from labels anti join wanted_parts using (part)", look, False),
        ("the same row twice",
         f"select any_value({_WHERE}) as told from label_rows group by label_rows having count(*) > 1", ask, False),
        *((check, f"select {_WHERE} as told from label_rows where {rule}", ask, False)
          for check, rule in IMPOSSIBLE.items()),
        ("rows whose image has another size in the manifest",
         f"select labels.{_WHERE.replace('part', 'labels.part')} as told from labels join "
         "(select distinct image_id, width, height from manifest where status = 'ok') as image using (image_id) "
         "where labels.status != 'unreadable' and (labels.width, labels.height) != (image.width, image.height)",
         ask, False),
    ]  # fmt: skip
    if CORRECTS not in record:
        found.append(("images and parts answered twice", asked_again, ask, False))
        if told := {name: str(record[name]) for name in ("engine", "model", "prompt_version") if name in record}:
            other = " or ".join(f"{name} != '{value.replace(chr(39), chr(39) * 2)}'" for name, value in told.items())
            found.append(("rows of another engine, model or prompt than the run's",
                          f"select {_WHERE} as told from label_rows where {other}", ask, False))  # fmt: skip
    found.append(("without a final answer", f"select {_WHERE} as told from labels where status not in ({_FINAL})",
                  f"{again} --retry-failed", True))  # fmt: skip
    return found


def _first(told: Sequence[str]) -> tuple[str]:
    return (told[0] if told else "",)
