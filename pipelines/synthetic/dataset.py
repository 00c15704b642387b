"""Writing a generated data set in the Market-1501 layout, with the truth about parts and attributes beside it.

<root>/synth_<domain>/bounding_box_train/0001_c1s1_000001_00.jpg   identity, camera, sequence, frame, box
                      query/                                       one picture per test identity and camera
                      bounding_box_test/                           the others, 0000 distractors, -1 junk
                      dataset.yaml  part_truth.csv  attributes.csv
"""

import csv
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.synthetic.domains import domain_called
from pipelines.synthetic.people import person
from pipelines.synthetic.pool import ordered_results
from pipelines.synthetic.render import DEFAULT_SIZE
from pipelines.synthetic.writing import GALLERY, QUERY, TRAIN, Picture, PictureTruth, write_pictures
from shared.errors import ConfigError, DgreidError, UsageError
from shared.files import make_folder, write_text
from shared.object_storage import remote
from shared.progress import Progress
from shared.schemas import PARTS
from shared.yaml_files import YamlFileError, read_mapping

GENERATOR_VERSION = 1  # raise it when the same seed gives other pictures
DISTRACTOR_SHARE = 0.25  # distractor pictures per test identity
JUNK_SHARE = 0.1  # junk pictures per test identity
_FIRST_DISTRACTOR = 10_000_000  # far above every identity that has a name
_CHUNK = 48  # pictures one worker draws between two reports

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What fully determines a generated data set; recorded in its dataset.yaml."""

    generator_version: int
    domain: str
    seed: int
    train_identities: int
    test_identities: int
    cameras: int
    images_per_camera: int
    width: int
    height: int


def generate_dataset(
    root: Path,
    domain: str,
    *,
    train_identities: int,
    test_identities: int,
    cameras: int,
    images_per_camera: int,
    seed: int,
    size: tuple[int, int] = DEFAULT_SIZE,
    workers: int | None = None,
    name: str | None = None,
) -> Path:
    """Write `<root>/<name>` (default: synth_<domain>) and return its path; do nothing when the same data set is there.

    Every identity is seen `images_per_camera` (>= 2) times by every one of `cameras` (>= 2) cameras. Test identities
    follow the training ones. `workers` processes draw (default: one per processor); the bytes do not depend on
    their number. The folder appears whole or not at all.

    Raises ConfigError for arguments that give no data set, UsageError when the folder holds another one, DgreidError
    when it cannot be written.
    """
    recipe = Recipe(
        GENERATOR_VERSION, domain, seed, train_identities, test_identities, cameras, images_per_camera, *size
    )
    workers = workers if workers is not None else os.cpu_count() or 1
    _check(recipe, workers)
    folder = root / (name or f"synth_{domain}")
    if folder.exists():
        _refuse_another(folder, recipe)
        log.info("%s is already there, generated with the same parameters: nothing to do", folder)
        return folder
    if remote(root):
        raise ConfigError("generated data sets are written into a folder", path=root,
                          fix="name one with DATA_ROOT=<folder>, and copy it to the store afterwards")  # fmt: skip
    make_folder(root)
    _remove_leftovers(root, folder.name)
    temporary = root / f".{folder.name}.{os.getpid()}.tmp"
    try:
        _write(temporary, folder.name, recipe, workers)
        os.sync()  # every picture is on the disk before the folder gets its name
        temporary.rename(folder)
    except OSError as err:
        raise DgreidError(
            f"cannot write the generated data set: {err.strerror or err}",
            path=folder,
            fix="free some disk space, or name another folder with DATA_ROOT=<folder you may write>",
        ) from err
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def pictures(recipe: Recipe) -> Iterator[Picture]:
    """Every picture of a data set, in the order of its truth files."""
    train, test = recipe.train_identities, recipe.test_identities
    for identity in range(1, train + test + 1):
        for camera in range(1, recipe.cameras + 1):
            for index in range(recipe.images_per_camera):
                split = TRAIN if identity <= train else QUERY if index == 0 else GALLERY
                yield Picture(split, f"{identity:04d}", identity, camera, index)
    for number in range(max(1, round(test * DISTRACTOR_SHARE)) if test else 0):
        yield Picture(GALLERY, "0000", _FIRST_DISTRACTOR + number, number % recipe.cameras + 1, number)
    for number in range(max(1, round(test * JUNK_SHARE)) if test else 0):
        index = recipe.images_per_camera + number
        yield Picture(GALLERY, "-1", train + 1 + number, number % recipe.cameras + 1, index, displaced=True)


def _check(recipe: Recipe, workers: int) -> None:
    domain_called(recipe.domain)
    rules = {
        "train_identities and test_identities must be at least 0 and not both 0": (
            min(recipe.train_identities, recipe.test_identities) >= 0
            and recipe.train_identities + recipe.test_identities > 0
        ),
        "at most 9999 identities fit the file names": recipe.train_identities + recipe.test_identities <= 9999,
        "cameras must be between 2 and 99: a query is searched in other cameras": 2 <= recipe.cameras <= 99,
        "images_per_camera must be at least 2: the first one becomes the query": recipe.images_per_camera >= 2,
        "seed must be at least 0": recipe.seed >= 0,
        "size must be at least 32 x 64 and at most 1024 x 2048": (
            32 <= recipe.width <= 1024 and 64 <= recipe.height <= 2048
        ),
        "workers must be at least 1": workers >= 1,
    }
    for rule, holds in rules.items():
        if not holds:
            raise ConfigError(f"cannot generate synth_{recipe.domain}: {rule}", fix="change that number")


def _write(folder: Path, name: str, recipe: Recipe, workers: int) -> None:
    for split in (TRAIN, QUERY, GALLERY):
        make_folder(folder / split)
    todo = list(pictures(recipe))
    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
    shared = (folder, recipe.domain, recipe.seed, (recipe.width, recipe.height))
    with (
        Progress(f"generate {name}", len(todo)) as progress,
        (folder / "part_truth.csv").open("w", newline="", encoding="utf-8") as stream,
    ):
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("path", "width", "height", "part", "x_min", "y_min", "x_max", "y_max"))
        for truths in ordered_results(write_pictures, [(*shared, chunk) for chunk in chunks], workers):
            for truth in truths:
                table.writerows(_part_rows(truth, recipe))
            progress.advance(len(truths))
    _write_attributes(folder / "attributes.csv", name, recipe)
    description: dict[str, Any] = {
        "layout": "market1501",
        "title": domain_called(recipe.domain).title,
        "synthetic": True,
        "generator": asdict(recipe),
    }
    write_text(folder / "dataset.yaml", yaml.safe_dump(description, sort_keys=False))


def _part_rows(truth: PictureTruth, recipe: Recipe) -> Iterator[tuple[object, ...]]:
    """One row per part; an absent part has empty coordinates."""
    for part in PARTS:
        box = truth.parts[part]
        yield (truth.path, recipe.width, recipe.height, part, *(box if box is not None else ("",) * 4))


def _write_attributes(path: Path, name: str, recipe: Recipe) -> None:
    lines = ["dataset,person_id,attributes"]
    for identity in range(1, recipe.train_identities + recipe.test_identities + 1):
        lines.append(f"{name},{identity},{' '.join(person(recipe.domain, identity, recipe.seed).attributes)}")
    write_text(path, "\n".join(lines) + "\n")


def _refuse_another(folder: Path, recipe: Recipe) -> None:
    """Raise UsageError unless the folder records exactly this recipe."""
    try:
        recorded = read_mapping(folder / "dataset.yaml")
        before = recorded["generator"]
        differing = sorted(key for key, value in asdict(recipe).items() if before.get(key) != value)
    except (OSError, YamlFileError, AttributeError, KeyError):
        differing, before = ["dataset.yaml"], {}
    if differing:
        now = asdict(recipe)
        known = ", ".join(f"{key} {before[key]} there, {now[key]} asked" for key in differing if key in before)
        raise UsageError(
            f"the folder holds another data set ({known or 'not made by this generator'})",
            path=folder,
            fix="delete the folder, ask for the recorded parameters, or name another place with DATA_ROOT=<folder>",
        )


def _remove_leftovers(root: Path, name: str) -> None:
    """Delete the unfinished folders of runs that were killed; a living process keeps its own."""
    for leftover in root.glob(f".{name}.*.tmp"):
        number = leftover.name.split(".")[-2]
        if number.isdigit() and not _alive(int(number)):
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()
