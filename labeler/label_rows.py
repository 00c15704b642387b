"""From an answer of the service, or from a file that could not be read, to label rows."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from labeler.api_models import ImageAnswer, PartAnswer, ServiceInfo
from shared.schemas import RAW_TEXT_LIMIT, LabelRow, LabelStatus, ManifestRow


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
    x_min, y_min, x_max, y_max = part.box or (None, None, None, None)
    return LabelRow(
        label_run=label_run,
        dataset=row.dataset,
        split=row.split,
        path=row.path,
        image_id=row.image_id,
        part=part.part,
        x_min=x_min,
        y_min=y_min,
        x_max=x_max,
        y_max=y_max,
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
        created_at=datetime.now(UTC),
        **image,
    )
