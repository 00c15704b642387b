"""Part masks that the reference implementation publishes: read from a pickle without running it, written as label rows.

The file is a pickled dict, file name -> float array [R, 128] over the 16 x 8 patches of an image. A row's box is the
tight box of a part's visible patches, in pixels of the original image.
"""

import pickle
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeler.annotation.label_run import open_label_run
from labeler.grounding.answers import LabelSource
from labeler.grounding.box_checks import check_box
from labeler.grounding.rows import part_row
from shared.errors import DataError
from shared.geometry import Box, scaled
from shared.labels import label_folder, write_label_shard, writer_lock
from shared.schemas import ImageStatus, LabelRow, LabelStatus, ManifestRow

ROWS, COLUMNS = 16, 8  # the patch grid of 256 x 128 pixels with stride 16
FLOATS = frozenset({"f2", "f4", "f8"})
ENGINE = "import"
NOT_A_RECTANGLE = "not_a_rectangle"  # the box covers patches that the mask hides
Masks = Mapping[str, NDArray[np.bool_]]


def read_masks(path: Path) -> dict[str, NDArray[np.bool_]]:
    """File name -> visible patches, bool [R, 16, 8]; 0 in the file is visible, -inf hidden.

    Raises DataError when the file is missing, holds anything but a dict of float arrays, or other values than these.
    """
    fix = "use the file as it was published; anything else is refused, because a pickle can run programs"
    try:
        with path.open("rb") as file:
            content = _Reader(file).load()
    except OSError as err:
        raise DataError(f"the masks cannot be read ({err.strerror})", path=path, fix="name the .pkl file") from err
    except DataError as err:
        raise DataError(err.what, path=path, fix=fix) from err
    except Exception as err:  # a hostile pickle raises what it likes; all of it means the same
        raise DataError(f"not a readable pickle ({type(err).__name__}: {str(err)[:120]})", path=path, fix=fix) from err
    if not isinstance(content, dict) or not content:
        raise DataError("not a dict of masks", path=path, fix=fix)
    return {_checked_name(name, path, fix): _visible(name, array, path, fix) for name, array in content.items()}


@dataclass(frozen=True)
class ImportedMasks:
    """Result of one import; the lists of names are complete."""

    label_run: str
    images: int
    boxes: int
    absent: int
    invalid: int  # masks whose box cannot be a body part, e.g. all patches visible
    not_rectangles: int
    collisions: dict[str, list[str]]  # file name -> different images that have it: none of them got a mask
    without_image: list[str]  # file names of the file that no image has
    without_mask: list[str]  # paths of images that the file does not know


def import_masks(
    masks: Masks,
    rows: Iterable[ManifestRow],
    labels_root: Path,
    *,
    dataset: str,
    label_run: str,
    parts: Sequence[str],
    origin: str,
    prompt_version: str,
) -> ImportedMasks:
    """Write one label run of a data set from masks by file name.

    Args:
        masks: file name -> bool [R, h, w].
        rows: the data set's manifest.
        parts: names of the R parts, in the masks' order.
        origin: recorded as the rows' model, e.g. the file's name.
        prompt_version: recorded too, e.g. the file's hash.

    Raises DataError when a mask has another number of parts or no image gets one, ConfigError when the run was made
    otherwise, DgreidError when another process writes to it or it cannot be written.
    """
    wrong = next((name for name, mask in masks.items() if len(mask) != len(parts)), None)
    if wrong is not None:
        raise DataError(
            f"{wrong!r} has masks of {len(masks[wrong])} parts, not of {len(parts)}: {', '.join(parts)}",
            fix="name the file's parts in their order with --parts",
        )
    images, collisions, without_mask = _matched(masks, rows)
    if not images:
        raise DataError(
            f"none of the {len(masks)} file names is an image of {dataset}", fix="name the data set of these masks"
        )
    known = {PurePosixPath(image.path).name for image in images} | collisions.keys()
    labels = [
        _row(image, part, mask, label_run, origin, prompt_version)
        for image in images
        for part, mask in zip(parts, masks[PurePosixPath(image.path).name], strict=True)
    ]
    source = LabelSource(engine=ENGINE, model=origin, prompt_version=prompt_version, parts=tuple(parts))
    open_label_run(labels_root, label_run, source)
    with writer_lock(labels_root, label_run, dataset):
        for split in sorted({row.split for row in labels}):
            write_label_shard(
                [row for row in labels if row.split == split], label_folder(labels_root, label_run, dataset, split)
            )
    return ImportedMasks(
        label_run,
        images=len(images),
        boxes=sum(row.status == LabelStatus.OK for row in labels),
        absent=sum(row.status == LabelStatus.ABSENT for row in labels),
        invalid=sum(row.status == LabelStatus.INVALID_BOX for row in labels),
        not_rectangles=sum(NOT_A_RECTANGLE in row.flags for row in labels),
        collisions=collisions,
        without_image=sorted(masks.keys() - known),
        without_mask=without_mask,
    )


def tight_box(mask: NDArray[np.bool_], width: int, height: int) -> Box | None:
    """The smallest box around the visible patches of a mask [h, w] over an image of width x height; None: hidden."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    across, down = width / mask.shape[1], height / mask.shape[0]
    return Box(
        float(columns[0] * across),
        float(rows[0] * down),
        float((columns[-1] + 1) * across),
        float((rows[-1] + 1) * down),
    )


def _matched(masks: Masks, rows: Iterable[ManifestRow]) -> tuple[list[ManifestRow], dict[str, list[str]], list[str]]:
    """Images with a mask of their own (each content once), file names of several images, paths without a mask."""
    by_name: dict[str, dict[str, ManifestRow]] = defaultdict(dict)
    for row in rows:
        if row.status == ImageStatus.OK:
            by_name[PurePosixPath(row.path).name].setdefault(row.image_id, row)
    images: list[ManifestRow] = []
    collisions: dict[str, list[str]] = {}
    without: list[str] = []
    for name, found in sorted(by_name.items()):
        if name not in masks:
            without += [row.path for row in found.values()]
        elif len(found) > 1:
            collisions[name] = sorted(row.path for row in found.values())
        else:
            images += found.values()
    return images, collisions, without


def _row(
    image: ManifestRow, part: str, mask: NDArray[np.bool_], run: str, origin: str, prompt_version: str
) -> LabelRow:
    tight = tight_box(mask, image.width, image.height)
    status = LabelStatus.ABSENT
    box: Box | None = None
    flags: tuple[str, ...] = ()
    if tight:
        box, flags = check_box(tight, image.width, image.height)
        status = LabelStatus.OK if box else LabelStatus.INVALID_BOX
    patches = float(mask.sum()) * image.width * image.height / mask.size
    if box and box.area > patches * (1 + 1e-9):
        flags += (NOT_A_RECTANGLE,)
    return part_row(
        image,
        part,
        box,
        label_run=run,
        status=status,
        flags=flags,
        raw_box=scaled(tight, mask.shape[1] / image.width, mask.shape[0] / image.height) if tight and not box else None,
        space="patches",
        engine=ENGINE,
        model=origin,
        prompt_version=prompt_version,
        attempts=0,
    )


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise DataError(f"the file asks for {module}.{name}", fix="")
        return found

    def persistent_load(self, _: Any) -> Any:
        raise DataError("the file refers to objects outside of it", fix="")


def _dtype(text: Any, *arguments: Any) -> np.dtype[Any]:
    """Floats only: object arrays could hold, and call, anything."""
    if not isinstance(text, str) or text.lstrip("<>=|") not in FLOATS:
        raise DataError(f"the file holds an array of {text!r}, not of floats", fix="")
    return np.dtype(text, *arguments)


def _bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        raise DataError("the file asks for _codecs.encode of something else than bytes", fix="")
    return text.encode("latin-1")


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> NDArray[Any]:
    if not isinstance(buffer, (bytes, bytearray)) or not isinstance(dtype, np.dtype):
        raise DataError("the file holds an array without its data", fix="")
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _bytes,
}


def _checked_name(name: Any, path: Path, fix: str) -> str:
    if not isinstance(name, str):
        raise DataError(f"a key that is not a file name: {name!r}"[:200], path=path, fix=fix)
    return name


def _visible(name: str, array: Any, path: Path, fix: str) -> NDArray[np.bool_]:
    if (
        not isinstance(array, np.ndarray)
        or array.dtype.kind != "f"
        or array.ndim != 2
        or array.shape[1] != ROWS * COLUMNS
    ):
        told = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"{name!r} is {told}, not a float array [parts, {ROWS * COLUMNS}]", path=path, fix=fix)
    visible: NDArray[np.bool_] = array == 0
    if not (visible | np.isneginf(array)).all():
        raise DataError(f"{name!r} has values that are neither 0 (visible) nor -inf (hidden)", path=path, fix=fix)
    return visible.reshape(-1, ROWS, COLUMNS)
