"""Any folder whose file names carry the identity, declared in its dataset.yaml.

    layout: pattern
    pattern: "{identity}_c{camera}_{*}.jpg"     {camera} may be missing; {*} is anything within one folder name
    split: train                                # of all images, or per sub-folder, where the pattern then starts:
    splits: {train: train, probe: query, gallery: gallery}

A pattern may name folders: "{identity}/{*}.jpg" reads one folder per person. Without split and splits it is `all`.
Identity -1 is junk unless `junk:` says otherwise; 0 is a person unless it is among `distractors:`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from shared.datasets.records import FOREIGN_NAME, FileRecord, Scan, images_in, number_cameras, number_identities
from shared.errors import DataError
from shared.schemas import Kind, Split

FIELDS = {
    "{identity}": r"(?P<identity>[^/]+?)",
    "{camera}": r"(?P<camera>[A-Za-z0-9]+?)",
    "{*}": r"[^/]*",
}


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression over POSIX paths.

    Raises DataError for unknown fields, fields given twice and a pattern without {identity}.
    """
    pieces = re.split(r"(\{[^{}]*\})", pattern)
    fields = [piece for piece in pieces if piece.startswith("{")]
    known = ", ".join(FIELDS)
    if unknown := sorted(set(fields) - FIELDS.keys()):
        raise DataError(f"pattern {pattern!r}: unknown field {', '.join(unknown)}", fix=f"known fields: {known}")
    if fields.count("{identity}") != 1 or fields.count("{camera}") > 1:
        raise DataError(
            f"pattern {pattern!r} needs {{identity}} once and {{camera}} at most once", fix=f"known fields: {known}"
        )
    return re.compile("".join(FIELDS.get(piece, re.escape(piece)) for piece in pieces))


def scan(root: Path, pattern: str, splits: Mapping[str, Split], kinds: Mapping[str, Kind]) -> Scan:
    """Read the names under `root`. Raises DataError for a malformed pattern.

    Args:
        pattern: as described above.
        splits: folder -> split; {"": split} when all images are of one split.
        kinds: identities that stand for no person.
    """
    expression = compile_pattern(pattern)
    images, skipped = images_in(root, splits)
    found = [(folder, name, expression.fullmatch(name)) for folder, name in images]
    labels = [(folder, name, _labels(match)) for folder, name, match in found if match]
    people = number_identities([identity for *_, (identity, _) in labels], kinds)
    cameras = number_cameras([camera for *_, (_, camera) in labels])
    files = [
        FileRecord(_join(folder, name), splits[folder], people[identity][0], cameras[camera], people[identity][1])
        for folder, name, (identity, camera) in labels
    ]
    if foreign := [_join(folder, name) for folder, name, match in found if not match]:
        skipped[FOREIGN_NAME] = foreign
    return Scan.of(files, skipped)


def _labels(match: re.Match[str]) -> tuple[str, str]:
    fields = match.groupdict()
    return fields["identity"], fields.get("camera") or ""


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
