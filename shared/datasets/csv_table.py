"""Any folder with a table of its images, declared in its dataset.yaml as `layout: csv` and `csv: images.csv`.

The columns are path, identity, split (train, query, gallery or all) and, where it is known, camera. Paths are relative
to the data set's folder. An empty camera is "not labelled". Identity -1 is junk unless `junk:` says otherwise; 0 is a
person unless it is among `distractors:`.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

from shared.datasets.records import (
    NOT_AN_IMAGE,
    NOT_LISTED,
    NOT_THERE,
    FileRecord,
    Scan,
    images_in,
    is_safe,
    number_cameras,
    number_identities,
)
from shared.errors import DataError
from shared.schemas import Kind, Split

REQUIRED, OPTIONAL = ("path", "identity", "split"), ("camera",)
SPLITS: tuple[str, ...] = get_args(Split)


def scan(root: Path, table: str, kinds: Mapping[str, Kind]) -> Scan:
    """Read `table` (a CSV file relative to `root`). kinds: identities that stand for no person.

    Raises DataError for a table that is missing or not UTF-8, for columns that are missing or unknown, and for a line
    with an empty field, an unknown split, a path that leaves the folder or the same image twice in one split.
    """
    lines = _read_lines(root / table)
    images, skipped = images_in(root, ("",))
    present = {name for _, name in images}
    skipped[NOT_AN_IMAGE] = [path for path in skipped.get(NOT_AN_IMAGE, []) if path != table]
    people = number_identities([line["identity"] for line in lines], kinds)
    cameras = number_cameras([line["camera"] for line in lines])
    files = [
        FileRecord(line["path"], cast(Split, line["split"]), identity, cameras[line["camera"]], kind)
        for line in lines
        for identity, kind in [people[line["identity"]]]
        if line["path"] in present
    ]
    skipped[NOT_THERE] = [line["path"] for line in lines if line["path"] not in present]
    skipped[NOT_LISTED] = list(present - {line["path"] for line in lines})
    return Scan.of(files, {reason: paths for reason, paths in skipped.items() if paths})


def _read_lines(path: Path) -> list[dict[str, str]]:
    fix = f"columns: {', '.join(REQUIRED)}, and camera where it is known; split is one of {', '.join(SPLITS)}"
    if not path.is_file():
        raise DataError("the table named in dataset.yaml is not there", path=path, fix=fix)
    lines: list[dict[str, str]] = []
    seen: set[tuple[str, str]] = set()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", skipinitialspace=True)
            columns = set(reader.fieldnames or ())
            missing, unknown = set(REQUIRED) - columns, columns - set(REQUIRED) - set(OPTIONAL)
            if missing or unknown:
                told = [f"missing columns {sorted(missing)}"] if missing else []
                told += [f"unknown columns {sorted(unknown)}"] if unknown else []
                raise DataError(" and ".join(told), path=path, fix=fix)
            for raw in reader:
                line = _checked(raw, f"{path}:{reader.line_num}", fix)
                if (line["path"], line["split"]) in seen:
                    raise DataError(
                        f"{line['path']!r} is listed twice in split {line['split']}",
                        path=f"{path}:{reader.line_num}",
                        fix="remove one of the lines",
                    )
                seen.add((line["path"], line["split"]))
                lines.append(line)
    except (UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"not a UTF-8 CSV file ({err})", path=path, fix=fix) from err
    return lines


def _checked(raw: dict[str, str], place: str, fix: str) -> dict[str, str]:
    if None in raw:
        raise DataError("a line has more fields than the header", path=place, fix=fix)
    line = {column: raw.get(column, "").strip() for column in (*REQUIRED, *OPTIONAL)}
    if empty := [column for column in REQUIRED if not line[column]]:
        raise DataError(f"nothing in column {', '.join(empty)}", path=place, fix=fix)
    if line["split"] not in SPLITS:
        raise DataError(f"unknown split {line['split']!r}", path=place, fix=fix)
    if not is_safe(line["path"]):
        raise DataError(
            f"the path {line['path']!r} leaves the data set's folder",
            path=place,
            fix="paths are relative to the folder of dataset.yaml, with / and without ..",
        )
    return line
