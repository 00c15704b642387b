"""Published folds beside a data set's images: which people are for training, one set per fold.

folds.json                     a list of {"train_ids": [...], ...}; wins when both are there
features_and_partitions.mat    GRID's archive: the cell array `trainIdxAll`, a structure per fold whose third field
                               lists the training people by the numbers in the file names
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from shared.datasets.records import FOLDS_FILE, GRID_PARTITIONS
from shared.errors import DataError

Folds = tuple[frozenset[int], ...]

PEOPLE_FIELD = 2


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
    except Exception as err:  # hostile MATLAB files raise what they like
        told = " ".join(f"{type(err).__name__}: {err}".split())[:200]
        raise DataError(f"not a list of folds ({told})", path=path, fix=fix) from err
    if not folds or not all(folds):
        raise DataError("a list without folds, or a fold without people", path=path, fix=fix)
    return folds


def _listed(path: Path) -> Iterable[Iterable[Any]]:
    return [fold["train_ids"] for fold in json.loads(path.read_text(encoding="utf-8"))]


def _partitions(path: Path) -> Iterable[Iterable[Any]]:
    from scipy.io import loadmat  # slow to import, and rarely needed

    cells = loadmat(path, variable_names=["trainIdxAll"])["trainIdxAll"]
    return [np.ravel(cell[0, 0][PEOPLE_FIELD]).tolist() for cell in np.ravel(cells)]
