"""The masks a trained model predicted on a target, as stored in its run folder."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np


def read_masks(folder: Path, target: str) -> tuple[list[str], np.ndarray, str]:
    """Read masks/<target>.npz: paths of n images, masks bool [n, R, h, w], and why there are none ("" otherwise)."""
    path = folder / "masks" / f"{target}.npz"
    nothing = np.zeros((0, 0, 0, 0), bool)
    if not path.is_file():
        return [], nothing, "The run folder has no predicted masks of this target."
    try:
        with np.load(path, allow_pickle=False) as stored:
            paths, masks = [str(entry) for entry in stored["paths"]], stored["masks"].astype(bool)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return [], nothing, "The predicted masks of this target could not be read."
    if masks.ndim != 4 or len(masks) != len(paths) or not masks.size:
        return [], nothing, "The model of this run predicts no part masks."
    return paths, masks, ""
