"""Label rows from the answer about an image, or for a file that could not be read."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from labeler.grounding.answers import ImageAnswer, PartAnswer, ServiceInfo
from shared.schemas import RAW_TEXT_LIMIT, LabelRow, LabelStatus, ManifestRow


def part_row(image: ManifestRow, part: str, box: Sequence[float] | None, **answer: Any) -> LabelRow:
    """The row of one part, with the current time.

    Args:
        box: x_min, y_min, x_max, y_max in pixels of the original image, or None.
        answer: the remaining fields of LabelRow; width and height override those of the manifest.
    """
    x_min, y_min, x_max, y_max = box or (None, None, None, None)
    return LabelRow(
        dataset=image.dataset,
        split=image.split,
        path=image.path,
        image_id=image.image_id,
        part=part,
        x_min=x_min,
        y_min=y_min,
        x_max=x_max,
        y_max=y_max,
        created_at=datetime.now(UTC),
        **{"width": image.width, "height": image.height, **answer},
    )


def answered_rows(
    row: ManifestRow, answer: ImageAnswer, parts: Collection[str], label_run: str, info: ServiceInfo
) -> list[LabelRow]:
    """One label row for each of `parts`."""
    return [
        _label_row(
            row,
            part,
            label_run,
            info,
            width=answer.width or row.width,
            height=answer.height or row.height,
            space=answer.space,
            raw_text=(part.raw_text or answer.error or None),
        )
        for part in answer.parts
        if part.part in parts
    ]


def unreadable_rows(
    row: ManifestRow, reason: str, parts: Sequence[str], label_run: str, info: ServiceInfo
) -> list[LabelRow]:
    """One row for each of `parts` of a file that was never sent."""
    return [
        _label_row(
            row,
            PartAnswer(part=part, status=LabelStatus.UNREADABLE),
            label_run,
            info,
            width=row.width,
            height=row.height,
            space="none",
            raw_text=reason or None,
        )
        for part in parts
    ]


def _label_row(row: ManifestRow, part: PartAnswer, label_run: str, info: ServiceInfo, **image: Any) -> LabelRow:
    raw_text = image.pop("raw_text")
    return part_row(
        row,
        part.part,
        part.box,
        label_run=label_run,
        status=part.status,
        score=part.score,
        agreement=part.agreement,
        flags=part.flags,
        raw_box=part.raw_box,
        raw_text=raw_text[:RAW_TEXT_LIMIT] if raw_text else None,
        engine=info.engine,
        model=info.model,
        prompt_version=info.prompt_version,
        attempts=part.attempts,
        **image,
    )
