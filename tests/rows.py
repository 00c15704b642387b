"""Manifest and label rows of which a test says only what matters to it."""

from datetime import UTC, datetime
from typing import Any

from shared.geometry import Box
from shared.schemas import LabelRow, LabelStatus, ManifestRow

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
_OF_THE_IMAGE = {"dataset", "split", "path", "image_id", "width", "height"}


def manifest_row(number: int = 1, **changes: Any) -> ManifestRow:
    """Image `number` of the data set `toy`, of identity 1 and camera 1."""
    given: dict[str, Any] = {
        "dataset": "toy",
        "split": "train",
        "path": f"{number}.jpg",
        "image_id": f"{number:016x}",
        "width": 64,
        "height": 128,
        "identity": 1,
        "camera": 1,
        "size_bytes": 1,
        "modified_ns": 0,
    }
    return ManifestRow(**{**given, **changes})


def label_row(image: ManifestRow, part: str = "head", box: Box | None = None, **changes: Any) -> LabelRow:
    """A row of the label run `first`: ok with the box, absent without one."""
    corners = zip(("x_min", "y_min", "x_max", "y_max"), box or (None,) * 4, strict=True)
    given: dict[str, Any] = {
        "label_run": "first",
        "part": part,
        "status": LabelStatus.OK if box else LabelStatus.ABSENT,
        "space": "original_pixels",
        "engine": "e",
        "model": "m",
        "prompt_version": "p",
        "attempts": 1,
        "created_at": NOON,
        **dict(corners),
        **image.model_dump(include=_OF_THE_IMAGE),
    }
    return LabelRow(**{**given, **changes})
