"""Corrections by people, saved as they are made, into a run that takes the place of the one looked at.

The first correction writes a label run `<run>.corrected` by the contract of `import-labels`; later ones are added.
A row says who decided and when: engine `review`, the reviewer as its model, flag `corrected` or `accepted`. Nothing is
ever changed in place: earlier rows stay in `label_rows`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock

from labeler.exchange.corrections import PROMPT_VERSION, TOLERANCE_PX, free_name
from labeler.exchange.part_boxes import box_of
from labeler.grounding.box_checks import check_box, relation_flags
from labeler.grounding.rows import part_row
from labeler.review.tables import LabelTables, require_labels
from shared.errors import DgreidError, UsageError
from shared.geometry import Box
from shared.labels import ACCEPTED, CORRECTED, CORRECTS, add_corrections, label_runs, read_record, write_correction
from shared.schemas import FINAL_STATUSES, ImageStatus, LabelRow, LabelStatus, ManifestRow

ENGINE = "review"
UNDO_DEPTH = 50  # per image
_NO_BOX = dict.fromkeys(("x_min", "y_min", "x_max", "y_max"))


class ConflictError(DgreidError):
    """The labels were changed elsewhere since the sender read them."""


class UnansweredError(UsageError):
    """An image cannot be accepted: one of its parts has no answer."""


def run_to_continue(labels_root: Path, label_run: str, datasets: Sequence[str]) -> str:
    """The run with the corrections that people already made of this one on the page, or itself."""
    for name in label_runs(labels_root, datasets):
        record = read_record(labels_root, name) or {}
        if record.get(CORRECTS) == label_run and record.get("engine") == ENGINE:
            return run_to_continue(labels_root, name, datasets)
    return label_run


def version_of(rows: Mapping[str, LabelRow]) -> str:
    """Changes with every row that is added to an image."""
    return max((row.created_at.isoformat() for row in rows.values()), default="none")


class Corrections:
    """Writes decisions of one reviewer; safe to use from several threads."""

    def __init__(self, tables: LabelTables, reviewer: str) -> None:
        self._tables, self._reviewer = tables, reviewer
        self._lock = Lock()
        self._undo: dict[str, list[list[LabelRow]]] = defaultdict(list)  # image_id -> rows that counted before
        self._last = datetime.min.replace(tzinfo=UTC)

    def undoable(self, image_id: str) -> int:
        return len(self._undo[image_id])

    def decide(
        self, image_id: str, parts: Mapping[str, Box | None], *, accept: bool = False, version: str | None = None
    ) -> int:
        """Save boxes (None: the part is absent) of an image; the number of rows written.

        Args:
            accept: whatever else the image's rows say is right, too.
            version: of the rows that the decision was made on; None: whatever they are.

        Raises ConflictError when the rows have changed since; UsageError for an unknown part, a box that cannot be a
        body part, or an accepted image with a part that has no answer; DgreidError when nothing could be saved.
        """
        with self._lock:
            return self._save({image_id: self._rows(image_id, parts, accept, version)})

    def decide_many(self, image_ids: Sequence[str], *, absent: str | None = None) -> tuple[int, list[str]]:
        """Accept images as they are, or mark a part of them absent; (images changed, images that have a part without an
        answer and were left as they are)."""
        with self._lock:
            changes, left = {}, []
            for image in dict.fromkeys(image_ids):
                try:
                    rows = self._rows(image, {absent: None} if absent else {}, absent is None, None)
                except UnansweredError:
                    left.append(image)
                else:
                    if rows:
                        changes[image] = rows
            if changes:
                self._save(changes)
            return len(changes), left

    def undo(self, image_ids: Sequence[str]) -> int:
        """Let the rows count again that counted before the last decision on each image; how many images had one."""
        with self._lock:
            changes = {}
            for image in image_ids:
                if self._undo[image]:
                    now = self._now()
                    changes[image] = [row.model_copy(update={"created_at": now}) for row in self._undo[image][-1]]
            if changes:
                self._write([row for rows in changes.values() for row in rows])
                for image in changes:
                    self._undo[image].pop()
            return len(changes)

    def _rows(
        self, image_id: str, parts: Mapping[str, Box | None], accept: bool, version: str | None
    ) -> list[LabelRow]:
        image, old = self._tables.row(image_id), self._tables.label_rows(image_id)
        if version is not None and version != version_of(old):
            raise ConflictError("the labels of this image were changed in another window", fix="look at them again")
        if image.status != ImageStatus.OK:
            raise UsageError("the file cannot be read as an image", fix="leave it out")
        before = {part: box_of(row) for part, row in old.items()}
        changed: dict[str, tuple[Box | None, tuple[str, ...]]] = {}
        for part, box in parts.items():
            if part not in self._tables.parts:
                raise UsageError(f"unknown part {part!r}", fix=f"the parts are {', '.join(self._tables.parts)}")
            changed |= {part: found} if (found := _changed(part, box, image, old.get(part), before.get(part))) else {}
        boxes = {part: box for part, box in before.items() if box and part not in changed}
        boxes |= {part: box for part, (box, _) in changed.items() if box}
        related = relation_flags(boxes) if changed else {}
        rows = [
            self._row(image, part, box, (CORRECTED, *flags, *related.get(part, ())), old.get(part))
            for part, (box, flags) in changed.items()
        ]
        if accept:
            rest = [row for part, row in old.items() if part not in changed]
            missing = [part for part in self._tables.parts if part not in changed and part not in old]
            missing += [row.part for row in rest if row.status not in FINAL_STATUSES]
            if missing:
                raise UnansweredError(
                    f"{' and '.join(missing)} has no answer yet", fix="draw its box, or mark it absent (X)"
                )
            rows += [
                self._row(image, row.part, box_of(row), (ACCEPTED, *row.flags), row)
                for row in rest
                if not {ACCEPTED, CORRECTED} & set(row.flags)
            ]
        return rows

    def _row(
        self, image: ManifestRow, part: str, box: Box | None, flags: tuple[str, ...], old: LabelRow | None
    ) -> LabelRow:
        return part_row(
            image,
            part,
            box,
            label_run=self._tables.label_run,
            status=LabelStatus.OK if box else LabelStatus.ABSENT,
            flags=flags,
            raw_box=(old and tuple(box_of(old) or ())) or None,  # what was there before
            space="original_pixels",
            engine=ENGINE,
            model=self._reviewer,
            prompt_version=PROMPT_VERSION,
            attempts=old.attempts if old else 0,
        ).model_copy(update={"created_at": self._now()})

    def _now(self) -> datetime:
        """The time, later than any it gave before: what tells two versions of an image apart."""
        self._last = max(datetime.now(UTC), self._last + timedelta(microseconds=1))
        return self._last

    def _save(self, changes: Mapping[str, list[LabelRow]]) -> int:
        rows = [row for image in changes.values() for row in image]
        if not rows:
            return 0
        before = {image: self._before(image, new) for image, new in changes.items()}
        self._write(rows)
        for image, old in before.items():
            if old:
                self._undo[image] = [*self._undo[image], old][-UNDO_DEPTH:]
        return len(rows)

    def _before(self, image_id: str, new: Sequence[LabelRow]) -> list[LabelRow]:
        """The rows that the new ones replace; a part that had none is absent before, for want of a better word."""
        old = self._tables.label_rows(image_id)
        return [old.get(row.part) or row.model_copy(update={**_NO_BOX, "status": LabelStatus.ABSENT}) for row in new]

    def _write(self, rows: Sequence[LabelRow]) -> None:
        tables = self._tables
        run, root = require_labels(tables), tables.workspace.labels
        record = read_record(root, run) or {}
        for dataset in sorted({row.dataset for row in rows}):
            chosen = [row for row in rows if row.dataset == dataset]
            if CORRECTS in record and record.get("engine") == ENGINE:
                chosen = [row.model_copy(update={"label_run": run}) for row in chosen]
                if add_corrections(root, run, chosen):
                    tables.reload()
                else:
                    tables.replace(chosen)
                continue
            name = free_name(root, run)
            record = {
                "engine": ENGINE,
                "model": self._reviewer,
                "prompt_version": PROMPT_VERSION,
                "parts": list(tables.parts),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                CORRECTS: run,
            }
            write_correction(root, run, name, [row.model_copy(update={"label_run": name}) for row in chosen], record)
            tables.label_run = run = name
            tables.reload()


def _changed(
    part: str, box: Box | None, image: ManifestRow, old: LabelRow | None, before: Box | None
) -> tuple[Box | None, tuple[str, ...]] | None:
    """The new box and its flags; None when nothing differs. Raises UsageError for a box that cannot be a body part."""
    if box is None:
        return None if old is not None and old.status == LabelStatus.ABSENT else (None, ())
    if before and max(abs(a - b) for a, b in zip(before, box, strict=True)) <= TOLERANCE_PX:
        return None
    checked = check_box(box, image.width, image.height)
    if checked.box is None:
        raise UsageError(
            f"the box of {part} cannot be a body part: {', '.join(checked.flags)}", fix="draw it larger, in the image"
        )
    return checked.box, checked.flags
