"""People with images and attribute words: generated ones, and the training identities of real data sets."""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.recipes.clip.captions import facts_of
from pipelines.synthetic import render_person
from pipelines.synthetic.people import person
from pipelines.synthetic.pool import ordered_results
from shared.datasets import locate, resolve_name
from shared.errors import DataError
from shared.files import atomic_path
from shared.images import load_image
from shared.manifest import read_manifest
from shared.progress import Progress
from shared.schemas import ImageStatus, ManifestRow
from shared.workspace import Workspace

SIZE = (64, 128)  # width, height in pixels
ATTRIBUTES_FILE = "attributes.csv"  # dataset, person_id, attributes; beside the data sets under DATA_ROOT
CAMERAS = 40  # per generated domain; a person is seen by a few of them
GENERATOR_SEED = 29  # other cameras and people than the demo's, whose seed is 0
HELD_OUT_OF = 5  # one identity in this many is held out of training


@dataclass(frozen=True)
class People:
    """N images of M people.

    Attributes:
        pixels: uint8 [N, 128, 64, 3] RGB, possibly memory-mapped.
        owners: int64 [N], the person (0..M-1) of each image.
        names: "<data set>/<identity>" of each person.
        facts: of each person, those that a caption can state.
    """

    pixels: np.ndarray
    owners: np.ndarray
    names: tuple[str, ...]
    facts: tuple[tuple[str, ...], ...]

    def split(self) -> tuple["People", "People"]:
        """The people to train on, and the held-out ones."""
        held = np.array([is_held_out(name) for name in self.names], dtype=bool)
        return self.only(~held), self.only(held)

    def only(self, chosen: np.ndarray) -> "People":
        """The people for whom bool [M] `chosen` is true, renumbered."""
        old = np.flatnonzero(chosen)
        new = np.full(len(chosen), -1)
        new[old] = np.arange(len(old))
        kept = np.flatnonzero(chosen[self.owners])
        return People(
            self.pixels[kept],
            new[self.owners[kept]],
            tuple(self.names[index] for index in old),
            tuple(self.facts[index] for index in old),
        )


def is_held_out(name: str) -> bool:
    """Whether the person "<data set>/<identity>" is held out of training; depends on a hash of the name alone."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_OF == 0


def concatenate(groups: Sequence[People]) -> People:
    """All people of the groups, in order."""
    starts = np.cumsum([0, *(len(group.names) for group in groups)])
    return People(
        np.concatenate([group.pixels for group in groups]),
        np.concatenate([group.owners + start for group, start in zip(groups, starts, strict=False)]),
        tuple(name for group in groups for name in group.names),
        tuple(facts for group in groups for facts in group.facts),
    )


def generated_people(domain: str, identities: int, views: int, cache: Path, *, workers: int = 1) -> People:
    """Identities 1..`identities` of a generated domain, each in `views` images from as many cameras.

    The pixels are rendered once, into `cache`/<domain>-<identities>x<views>.npy. Raises ConfigError for an unknown
    domain, DgreidError when the cache cannot be written.
    """
    path = cache / f"{domain}-{identities}x{views}.npy"
    if not path.is_file():
        calls = [(domain, identity, views) for identity in range(1, identities + 1)]
        with Progress(f"render {domain}", identities * views) as progress, atomic_path(path) as temporary:
            pixels = np.empty((identities * views, SIZE[1], SIZE[0], 3), np.uint8)
            for index, rendered in enumerate(ordered_results(_render, calls, workers)):
                pixels[index * views : (index + 1) * views] = rendered
                progress.advance(views)
            with temporary.open("wb") as stream:
                np.save(stream, pixels)
    return People(
        np.load(path, mmap_mode="r"),
        np.repeat(np.arange(identities), views),
        tuple(f"synth_{domain}/{identity}" for identity in range(1, identities + 1)),
        tuple(facts_of(person(domain, identity, GENERATOR_SEED).attributes) for identity in range(1, identities + 1)),
    )


def real_people(sources: Sequence[str], workspace: Workspace) -> People:
    """The training identities of these data sets that have attribute words, with all their readable images.

    Reads the manifests and DATA_ROOT/attributes.csv. Raises DataError when one of them is missing, or a data set
    has no training identity with both images and attribute words.
    """
    facts = read_attributes(workspace.data_root)
    rows = [row for name in sources for row in _train_rows(name, facts, workspace)]
    names = sorted({f"{row.dataset}/{row.identity}" for row in rows})
    number = {name: index for index, name in enumerate(names)}
    pixels = np.empty((len(rows), SIZE[1], SIZE[0], 3), np.uint8)
    with Progress("read real images", len(rows)) as progress:
        for index, row in enumerate(rows):
            image = load_image(locate(row.dataset, workspace.data_root) / row.path)
            pixels[index] = np.asarray(image.resize(SIZE, Image.Resampling.BICUBIC))
            progress.advance()
    owners = np.array([number[f"{row.dataset}/{row.identity}"] for row in rows])
    return People(pixels, owners, tuple(names), tuple(facts[name] for name in names))


def read_attributes(data_root: Path) -> dict[str, tuple[str, ...]]:
    """ "<data set>/<identity>" -> facts. Raises DataError for a missing or malformed table."""
    path = data_root / ATTRIBUTES_FILE
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return {
                f"{resolve_name(line['dataset'], data_root)}/{int(line['person_id'])}": facts_of(
                    line["attributes"].split()
                )
                for line in csv.DictReader(stream)
            }
    except (OSError, KeyError, ValueError, AttributeError) as err:
        raise DataError(
            f"no readable table of attribute words ({' '.join(str(err).split())[:100]})",
            path=path,
            fix="provide it with the columns dataset, person_id, attributes, or train on generated people only "
            "with --sources none",
        ) from err


def _train_rows(name: str, facts: dict[str, tuple[str, ...]], workspace: Workspace) -> Iterator[ManifestRow]:
    found = False
    for row in read_manifest(workspace.manifest(name)):
        if row.split == "train" and row.status == ImageStatus.OK and f"{name}/{row.identity}" in facts:
            found = True
            yield row
    if not found:
        raise DataError(
            f"no training identity of {name} has both images and attribute words",
            path=workspace.data_root / ATTRIBUTES_FILE,
            fix="choose other sources, or add its identities to the table",
        )


def _render(domain: str, identity: int, views: int) -> np.ndarray:
    """uint8 [views, 128, 64, 3]: one image per camera; the cameras are a random choice seeded by the identity."""
    rng = np.random.default_rng((GENERATOR_SEED, identity))
    cameras = 1 + rng.permutation(CAMERAS)[:views]
    return np.stack(
        [
            render_person(domain, identity, int(camera), index, seed=GENERATOR_SEED, size=SIZE).pixels
            for index, camera in enumerate(cameras)
        ]
    )
