"""Data with known part boxes: real photos, split by a hash of their names, and generated people."""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.synthetic import DOMAINS, render_person
from pipelines.synthetic.pool import ordered_results
from shared.errors import DataError
from shared.files import atomic_path
from shared.progress import Progress
from shared.schemas import PARTS

HELD_OUT = 126  # real photos, for the final scores
VALIDATION = 50  # real photos, for the training log
GENERATED_SIZE = (80, 160)  # width, height in pixels
CHUNK = 500  # generated scenes per file
CAMERAS = 12  # per generated domain, different ones in every file
UNSEEN_IDENTITY = 10_000_000  # generated identities from here on are never trained on
SEED = 6
_TABLE = "parts.csv"

Pixels = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scenes:
    """N images [H, W, 3] uint8 RGB and their boxes [N, parts, 4] in pixels, NaN where a part is not visible."""

    pixels: Sequence[Pixels] | Pixels
    boxes: Boxes

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, indices: Sequence[int]) -> "Scenes":
        return Scenes([self.pixels[index] for index in indices], self.boxes[list(indices)])


@dataclass(frozen=True)
class RealScenes:
    training: Scenes
    validation: Scenes
    held_out: Scenes


def real_scenes(folder: Path) -> RealScenes:
    """The photos of `folder`/images with the boxes of `folder`/parts.csv (image, part, x_min, y_min, x_max, y_max).

    The photos whose names have the smallest hashes are held out, the next ones are for validation, so that added
    photos change few assignments. Raises DataError when the table or a photo is missing.
    """
    truth = _truth(folder / _TABLE)
    names = sorted(truth, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    scenes = Scenes([_photo(folder / "images" / name) for name in names], np.stack([truth[name] for name in names]))
    order = range(len(names))
    parts = order[:HELD_OUT], order[HELD_OUT : HELD_OUT + VALIDATION], order[HELD_OUT + VALIDATION :]
    held_out, validation, training = map(scenes.subset, parts)
    return RealScenes(training, validation, held_out)


def generated_scenes(folder: Path, count: int, *, first_identity: int = 0, workers: int = 2) -> Scenes:
    """`count` generated people, rendered into files of `folder`; existing files are read."""
    starts = range(0, count, CHUNK)
    paths = [folder / f"{first_identity + start:09d}.npz" for start in starts]
    missing = [(path, first_identity + start) for path, start in zip(paths, starts, strict=True) if not path.exists()]
    with Progress("render people", len(missing) * CHUNK) as progress:
        for _ in ordered_results(_render_chunk, missing, workers):
            progress.advance(CHUNK)
    chunks = [np.load(path) for path in paths]
    pixels = np.concatenate([chunk["pixels"] for chunk in chunks])[:count]
    return Scenes(pixels, np.concatenate([chunk["boxes"] for chunk in chunks])[:count])


def _render_chunk(path: Path, first_identity: int) -> None:
    rendered = list(_rendered(first_identity))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, pixels=np.stack([one for one, _ in rendered]), boxes=np.stack([one for _, one in rendered]))


def _rendered(first_identity: int) -> Iterator[tuple[Pixels, Boxes]]:
    for identity in range(first_identity, first_identity + CHUNK):
        domain = DOMAINS[identity % len(DOMAINS)]
        camera = 1 + CAMERAS * (identity // CHUNK) + identity // len(DOMAINS) % CAMERAS
        sample = render_person(domain, identity, camera, 0, seed=SEED, size=GENERATED_SIZE)
        boxes = [sample.parts[part] or (np.nan,) * 4 for part in PARTS]
        yield sample.pixels, np.array(boxes, np.float32)


def _truth(path: Path) -> dict[str, Boxes]:
    if not path.is_file():
        raise DataError(
            "no table of part boxes", path=path, fix="set --truth to the folder that holds parts.csv and images/"
        )
    truth: dict[str, Boxes] = defaultdict(lambda: np.full((len(PARTS), 4), np.nan, np.float32))
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["part"] in PARTS:
                box = [float(row[side]) for side in ("x_min", "y_min", "x_max", "y_max")]
                truth[row["image"]][PARTS.index(row["part"])] = box
    return dict(truth)


def _photo(path: Path) -> Pixels:
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise DataError("cannot read a photo that the table lists", path=path, fix="restore the file")
    return np.asarray(pixels, np.uint8)
