"""Query and gallery of a test set: drawn, published beside the images, or stored in a run folder.

Rules, after the papers that report on these sets:
    fixed       query and gallery as the layout gives them (Market-1501 and its like)
    VIPeR       a random half of the identities: 316 of 632, queries from camera a, gallery from camera b
    PRID2011    queries of 100 of the 200 shared identities; the gallery is camera b without the other 100 (649 images)
    GRID        queries of 125 of the 250 identities; the gallery is their images and all 775 distractors
    single shot sets without any split (i-LIDS): of a random half of the identities (60 of 119) one random image is the
                query and one other is in the gallery, from another camera where cameras are labelled

Published folds say which identities are for training, one set per fold:
    folds.json                     a list of {"train_ids": [...], ...}; takes precedence
    features_and_partitions.mat    GRID's archive: the cell array `trainIdxAll`, a structure per fold whose third field
                                   lists the training identities by the numbers in the file names
"""

import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.datasets.records import FOLDS_FILE, GRID_PARTITIONS
from shared.errors import DataError
from shared.files import write_text
from shared.object_storage import StorageError
from shared.schemas import ImageStatus, Kind, ManifestRow

Folds = tuple[frozenset[int], ...]

FIXED = "fixed query and gallery"
SIDES = ("query", "gallery")
HALVED = frozenset({"viper", "prid", "grid"})  # query and gallery hold all identities; half of them are for training
_PEOPLE_FIELD = 2  # of GRID's structure per fold


@dataclass(frozen=True)
class EvaluationSplit:
    """Rows of one test, ordered by path. Junk and distractors are in the gallery; queries are people."""

    query: tuple[ManifestRow, ...]
    gallery: tuple[ManifestRow, ...]
    rule: str  # for the protocol line


def make_splits(
    target: str, rows: Sequence[ManifestRow], *, folds: Sequence[frozenset[int]], count: int, seed: int
) -> list[EvaluationSplit]:
    """Splits of one data set.

    Args:
        folds: published train identities per fold; empty: none are published.
        count: how many splits to draw, or how many folds to use at most.
        seed: of the draws; split k is the same whatever `count` is.

    Raises DataError when there are no valid queries.
    """
    readable = sorted((row for row in rows if row.status == ImageStatus.OK), key=lambda row: (row.path, row.split))
    query = [row for row in readable if row.split == "query" and row.kind == Kind.PERSON]
    gallery = [row for row in readable if row.split == "gallery"]
    loose = [row for row in readable if row.split == "all" and row.kind == Kind.PERSON]
    generators = [np.random.Generator(np.random.PCG64(child)) for child in np.random.SeedSequence(seed).spawn(count)]
    if folds:
        splits = [_without(query, gallery, ids, "published fold") for ids in folds[:count]]
    elif target in HALVED:
        splits = [_random_half(query, gallery, generator, seed) for generator in generators]
    elif loose and not query:
        splits = [_single_shot(loose, generator, seed) for generator in generators]
    else:
        splits = [EvaluationSplit(tuple(query), tuple(gallery), FIXED)]
    if not splits or not all(split.query and split.gallery for split in splits):
        raise DataError(
            f"{target} has no valid queries: {len(query)} readable query and {len(gallery)} gallery images",
            fix="test on a data set that has both, or on one with two images of a person; this one can be a source",
        )
    return splits


def has_valid_query(split: EvaluationSplit) -> bool:
    """Whether any query has a match in the gallery that the Market-1501 rule does not remove (same camera)."""
    cameras: dict[int | None, set[int | None]] = defaultdict(set)
    for row in split.gallery:
        cameras[row.identity].add(row.camera)
    return any(
        bool(found - {row.camera}) if row.camera is not None else bool(found)
        for row in split.query
        if (found := cameras.get(row.identity, set()))
    )


def left_out(rows: Sequence[ManifestRow], splits: Sequence[EvaluationSplit]) -> list[str]:
    """What of a data set's test images its scores are not about, as sentences: a reader of the scores must know.

    Args:
        rows: the whole manifest.
        splits: the ones that were made of it.
    """
    told = []
    tested = [row for row in rows if row.split in ("query", "gallery", "all")]
    if unreadable := Counter(str(row.split) for row in tested if row.status != ImageStatus.OK):
        told.append(f"{_counts(unreadable)} images are unreadable and left out")
    query = [row for row in tested if row.split == "query" and row.status == ImageStatus.OK]
    loose = [row for row in tested if row.split == "all" and row.status == ImageStatus.OK]
    if nobody := [row for row in query if row.kind != Kind.PERSON]:
        told.append(f"{len(nobody):,} query images are junk or distractors: nobody is searched for with them")
    if query and loose:
        told.append(f"{len(loose):,} images of split 'all' are neither query nor gallery")
    asked: dict[int, list[ManifestRow]] = defaultdict(list)
    for row in query or loose:
        if row.kind == Kind.PERSON:
            asked[row.person].append(row)
    if query and splits[0].rule != FIXED:
        gallery = {row.identity for row in tested if row.split == "gallery" and row.status == ImageStatus.OK}
        if alone := [who for who in asked if who not in gallery]:
            told.append(f"{len(alone):,} of {len(asked):,} people of the query have no gallery image: in no split")
    elif not query and (alone := [who for who, own in asked.items() if not any(_partners(row, own) for row in own)]):
        told.append(f"{len(alone):,} of {len(asked):,} people have no two images from different cameras: in no split")
    sides = [{row.path: row.camera for split in splits for row in getattr(split, side)} for side in SIDES]
    if all(any(camera is not None for camera in side.values()) for side in sides):  # else the protocol line says it
        unknown = [
            f"{n:,} of {len(side):,} {name}"
            for name, side in zip(SIDES, sides, strict=True)
            if (n := sum(camera is None for camera in side.values()))
        ]
        if unknown:
            told.append(f"{' and '.join(unknown)} images have no camera label: none is removed as same-camera for them")
    return told


def _counts(found: Counter[str]) -> str:
    names = {"all": "test"}
    return " and ".join(f"{count:,} {names.get(split, split)}" for split, count in sorted(found.items(), reverse=True))


def _without(
    query: Sequence[ManifestRow], gallery: Sequence[ManifestRow], train_ids: frozenset[int], rule: str
) -> EvaluationSplit:
    """All identities but the training half's; a query's identity must be in the gallery."""
    findable = {row.identity for row in gallery} - train_ids
    return EvaluationSplit(
        tuple(row for row in query if row.identity in findable),
        tuple(row for row in gallery if row.identity not in train_ids),
        rule,
    )


def _random_half(
    query: Sequence[ManifestRow], gallery: Sequence[ManifestRow], generator: np.random.Generator, seed: int
) -> EvaluationSplit:
    people = sorted({row.person for row in query} & {row.identity for row in gallery})
    test = generator.permutation(len(people))[: _half(len(people))]
    train_ids = frozenset(people) - {people[place] for place in test}
    return _without(query, gallery, train_ids, f"random half of the identities, seed {seed}")


def _single_shot(rows: Sequence[ManifestRow], generator: np.random.Generator, seed: int) -> EvaluationSplit:
    images: dict[int, list[ManifestRow]] = defaultdict(list)
    for row in rows:
        images[row.person].append(row)
    people = sorted(identity for identity, own in images.items() if any(_partners(row, own) for row in own))
    query, gallery = [], []
    for place in sorted(generator.permutation(len(people))[: _half(len(people))]):
        own = images[people[place]]
        candidates = [row for row in own if _partners(row, own)]
        query.append(candidates[generator.integers(len(candidates))])
        partners = _partners(query[-1], own)
        gallery.append(partners[generator.integers(len(partners))])
    rule = f"random half of the identities, one image against one, seed {seed}"
    return EvaluationSplit(tuple(query), tuple(gallery), rule)


def _partners(query: ManifestRow, own: Sequence[ManifestRow]) -> list[ManifestRow]:
    """Images of the same person that the Market-1501 rule does not remove for this query."""
    return [row for row in own if row is not query and (query.camera is None or row.camera != query.camera)]


def _half(count: int) -> int:
    return (count + 1) // 2  # 60 of 119, as published for i-LIDS


def read_folds(folder: Path) -> Folds:
    """Train identities of each fold; none when neither file is there. Raises DataError for a damaged file."""
    readers: tuple[tuple[str, Callable[[Path], Iterable[Iterable[Any]]]], ...] = (
        (FOLDS_FILE, _listed),
        (GRID_PARTITIONS, _partitions),
    )
    for name, read in readers:
        if (folder / name).is_file():
            return _checked(folder / name, read)
    return ()


def _checked(path: Path, read: Callable[[Path], Iterable[Iterable[Any]]]) -> Folds:
    expected = '[{"train_ids": [1, 2, ...]}, ...]' if path.name == FOLDS_FILE else "the file of GRID's archive"
    fix = f"expected {expected}; correct it, or delete it to draw random halves"
    try:
        folds = tuple(frozenset(int(number) for number in fold) for fold in read(path))
    except StorageError:
        raise
    except Exception as err:  # hostile MATLAB files raise what they like
        told = " ".join(f"{type(err).__name__}: {err}".split())[:200]
        raise DataError(f"not a list of folds ({told})", path=path, fix=fix) from err
    if not folds or not all(folds):
        raise DataError("a list without folds, or a fold without people", path=path, fix=fix)
    return folds


def _listed(path: Path) -> Iterable[Iterable[Any]]:
    return [fold["train_ids"] for fold in json.loads(path.read_text(encoding="utf-8"))]


def _partitions(path: Path) -> Iterable[Iterable[Any]]:
    from scipy.io import loadmat  # slow to import, needed for GRID's archive only

    cells = loadmat(io.BytesIO(path.read_bytes()), variable_names=["trainIdxAll"])["trainIdxAll"]
    return [np.ravel(cell[0, 0][_PEOPLE_FIELD]).tolist() for cell in np.ravel(cells)]


def stored_splits(
    run_folder: Path, target: str, rows: Sequence[ManifestRow], drawn: Sequence[EvaluationSplit]
) -> list[EvaluationSplit]:
    """The splits of splits/<target>.json in the run folder, so that a run scored again is scored on the same images.

    `drawn` when none are stored, or when query and gallery are fixed.
    Raises DataError when the file is damaged or names images that the manifest does not have.
    """
    path = _path(run_folder, target)
    return _read(path, rows) if drawn[0].rule != FIXED and path.is_file() else list(drawn)


def store_splits(run_folder: Path, target: str, splits: Sequence[EvaluationSplit], *, seed: int) -> None:
    """Write the splits; of a fixed query and gallery, which the manifest has, only the sizes."""
    content = {"target": target, "rule": splits[0].rule, "seed": seed, "splits": [_described(one) for one in splits]}
    write_text(_path(run_folder, target), json.dumps(content, indent=1) + "\n")


def _path(run_folder: Path, target: str) -> Path:
    return run_folder / "splits" / f"{target}.json"


def _described(split: EvaluationSplit) -> dict[str, object]:
    if split.rule == FIXED:
        return {"query_images": len(split.query), "gallery_images": len(split.gallery)}
    return {"query": [row.path for row in split.query], "gallery": [row.path for row in split.gallery]}


def _read(path: Path, rows: Sequence[ManifestRow]) -> list[EvaluationSplit]:
    fix = "delete this file to redraw the splits; the scores will then be of other splits"
    there = {(row.split, row.path): row for row in rows if row.status == ImageStatus.OK}
    loose = {row.path: row for row in rows if row.split == "all" and row.status == ImageStatus.OK}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [
            EvaluationSplit(
                tuple(there.get(("query", name)) or loose[name] for name in split["query"]),
                tuple(there.get(("gallery", name)) or loose[name] for name in split["gallery"]),
                str(content["rule"]),
            )
            for split in content["splits"]
        ]
    except KeyError as err:
        raise DataError(f"{err} of the stored splits is not in the manifest", path=path, fix=fix) from err
    except (OSError, ValueError, TypeError, AttributeError) as err:
        raise DataError(f"damaged list of splits ({type(err).__name__}: {err})", path=path, fix=fix) from err
