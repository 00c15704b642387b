"""Identities and cameras as arrays with explicit masks for missing values: no number is used as a sentinel."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import UsageError

Numbers = np.ma.MaskedArray[tuple[int, ...], np.dtype[np.int64]]  # masked: not known


@dataclass(frozen=True)
class GroundTruth:
    """What is known of the N images of one side: identities [N], meaningless where not `person`; cameras [N],
    meaningless where not `labelled`; junk [N]."""

    identities: NDArray[np.int64]
    person: NDArray[np.bool_]
    cameras: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    junk: NDArray[np.bool_]

    def seen_by_camera_of(self, asking: "GroundTruth", query: Any, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these images `places` the camera of one query took, or that of each its own query (an array); a
        camera that is not labelled is no other image's."""
        known = self.labelled[places] & asking.labelled[query]
        found: NDArray[np.bool_] = (self.cameras[places] == asking.cameras[query]) & known
        return found


def ground_truth(
    name: str,
    count: int,
    identities: ArrayLike,
    cameras: ArrayLike | None,
    distractor: ArrayLike | None = None,
    junk: ArrayLike | None = None,
) -> GroundTruth:
    """What `reid.metrics.retrieval.evaluate` is told of the `count` images of one side, checked; see there.

    Raises UsageError, which speaks of the query's or the gallery's by `name`.
    """
    ids = as_numbers(identities, f"{name} identities")
    cams = as_numbers([None] * count if cameras is None else cameras, f"{name} cameras")
    masks = [as_numpy(False if mask is None else mask) for mask in (distractor, junk)]
    if {ids.shape, cams.shape} != {(count,)} or any(mask.shape not in ((), (count,)) for mask in masks):
        raise UsageError(
            f"{name} shapes do not fit: {count} images, identities {ids.shape}, cameras {cams.shape}, "
            f"distractors {masks[0].shape}, junk {masks[1].shape}",
            fix="give identities and cameras of every image, and masks of every image or one value for all",
        )
    if any(mask.dtype != bool for mask in masks):
        raise UsageError(f"{name} masks are not boolean", fix="give a comparison, such as gallery_junk=ids == -1")
    distracts, dropped = (np.broadcast_to(mask, (count,)) for mask in masks)
    if both := np.count_nonzero(distracts & dropped):
        raise UsageError(
            f"{both} {name} images are distractors and junk", fix="junk is dropped: name them as that only"
        )
    person = ~(distracts | dropped)
    if missing := np.count_nonzero(np.ma.getmaskarray(ids) & person):
        raise UsageError(
            f"{missing} {name} identities are missing",
            fix="leave out queries without one; gallery images without one are gallery_distractor or gallery_junk",
        )
    if name == "gallery" and junk is None and (doubtful := np.count_nonzero((ids.data == -1) & person)):
        raise UsageError(
            f"{doubtful} gallery images have identity -1, which is junk in Market-1501 and could be a person here",
            fix="give gallery_junk=gallery_ids == -1, or gallery_junk=False when it is a person",
        )
    return GroundTruth(ids.data, person, cams.data, ~np.ma.getmaskarray(cams), dropped)


def as_numbers(values: Any, name: str = "numbers") -> Numbers:
    """Whole numbers as int64; what is missing is masked: None, NaN, and what is masked already (np.ma).

    Raises UsageError, which calls them `name`, for fractions, text and what is beyond 64 bits, and for floats that are
    too large to tell neighbouring whole numbers apart (2^53 in float64).
    """
    found, missing = as_numpy(values), np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else False
    if found.dtype == object:
        nothing = [one is None or one is np.ma.masked or one != one for one in found.flat]
        missing = missing | np.array(nothing, bool).reshape(found.shape)
    elif found.dtype.kind == "f":
        missing = missing | np.isnan(found)
    missing = np.broadcast_to(missing, found.shape)
    known = found.copy()
    known[missing] = 0
    try:
        with np.errstate(invalid="ignore"):
            numbers = known.astype(np.int64)
        whole = known.dtype.kind in "biufO" and bool((numbers == known).all()) and not _blurred(known)
    except (OverflowError, TypeError, ValueError):
        whole = False
    if not whole:
        raise UsageError(f"{name} are not whole numbers of at most 64 bits", fix="number people and cameras")
    return np.ma.MaskedArray(numbers, missing)


def _blurred(known: NDArray[Any]) -> bool:
    """Whether floats are so large that different whole numbers are one: people and cameras would be mixed up."""
    if known.dtype.kind == "f":
        return bool((np.abs(known) >= 2.0 ** (np.finfo(known.dtype).nmant + 1)).any())
    return known.dtype == object and any(isinstance(one, float) and abs(one) >= 2.0**53 for one in known.flat)


def as_numpy(values: Any) -> NDArray[Any]:
    """An array, or a torch tensor on any device and of any precision, as a NumPy array."""
    if hasattr(values, "detach"):  # a torch tensor; NumPy has no bfloat16
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() and values.element_size() < 4 else values
    return np.asarray(values)
