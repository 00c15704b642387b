"""The training images of a protocol's sources: manifests joined with part labels, identities numbered 0..K-1.

Everything is a column, an Arrow or NumPy array: no Python object is made for a row, so millions of rows fit.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reid.config import DataConfig
from reid.data.columns import ROWS_AT_ONCE, Column, Files, chosen
from reid.protocols.protocol import Protocol, trained_on
from shared.body_prior import PROPORTIONS, prior_box
from shared.datasets import locate
from shared.errors import ConfigError, DataError
from shared.labels import WRONG, choose_label_run, connect, label_runs, label_shards, refuse_impossible
from shared.manifest import manifest_columns
from shared.schemas import FINAL_STATUSES, ImageStatus, Kind
from shared.workspace import Workspace

log = logging.getLogger(__name__)

UNREADABLE = "unreadable image"
NOT_LABELLED = "not labelled"
OVER_THE_CAP = "beyond data.max_images_per_identity"
_COLUMNS = ("dataset", "split", "path", "image_id", "width", "height", "kind", "identity", "camera", "status")


@dataclass(frozen=True)
class TrainingSet:
    """N training images of K identities, ordered by data set and path.

    boxes: float64 [N, R, 4] in pixels of the original images, XYXY, maxima exclusive; NaN where a part has no box.
    labels: int64 [N] in 0..K-1; label k is identities[k], a (data set, identity) pair.
    cameras: [N], None where not labelled.
    dropped: how many images were left out, by reason. label_run: None when no labels were needed. filled: how many
    boxes are the body prior's because the part has no label, by data set.
    """

    datasets: Sequence[str]
    paths: Sequence[str]  # relative to the data set's folder
    image_ids: Sequence[str]
    labels: np.ndarray
    cameras: Sequence[int | None]
    boxes: np.ndarray
    identities: tuple[tuple[str, int], ...]
    sources: tuple[str, ...]
    label_run: str | None
    dropped: dict[str, int]
    filled: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_arrays(cls, labels: np.ndarray, boxes: np.ndarray) -> "TrainingSet":
        """Images of no data set, e.g. generated ones: labels int [N] in 0..K-1, boxes [N, R, 4]."""
        count, name = len(labels), "generated"
        names = tuple(f"{number:08d}" for number in range(count))
        identities = tuple((name, number) for number in range(int(labels.max()) + 1))
        given = (name,) * count, names, names, labels.astype(np.int64), (None,) * count, boxes
        return cls(*given, identities, (name,), None, {})

    def __len__(self) -> int:
        return len(self.paths)

    def files(self, data_root: Path) -> Sequence[Path]:
        """Absolute or relative path of every image. Raises DataError when a data set is gone."""
        return Files({name: locate(name, data_root) for name in self.sources}, self.datasets, self.paths)

    def only(self, wanted: NDArray[np.bool_]) -> "TrainingSet":
        """The images of a bool [N], their labels renumbered."""
        indices = np.flatnonzero(wanted)
        labels, renumbered = np.unique(self.labels[indices], return_inverse=True)
        return replace(
            self,
            datasets=chosen(self.datasets, indices),
            paths=chosen(self.paths, indices),
            image_ids=chosen(self.image_ids, indices),
            cameras=chosen(self.cameras, indices),
            labels=renumbered.astype(np.int64),
            boxes=self.boxes[indices],
            identities=tuple(self.identities[label] for label in labels),
        )

    @property
    def identities_sha256(self) -> str:
        """What prompts are made for: the ordered identities."""
        return hashlib.sha256(json.dumps(self.identities).encode()).hexdigest()

    @property
    def sha256(self) -> str:
        """Of everything training reads from this table."""
        digest = hashlib.sha256()
        for text in _json_of_lists(self.identities, self.datasets, self.paths, self.labels):
            digest.update(text.encode())
        digest.update(np.ascontiguousarray(self.boxes).data)
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """The run folder's training_set.json."""
        pairs = {pair for pair in zip(self.datasets, self.cameras, strict=True) if pair[1] is not None}
        return {
            "sources": list(self.sources),
            "label_run": self.label_run,
            "images": len(self),
            "identities": len(self.identities),
            "cameras": len(pairs),
            "dropped": self.dropped,
            "filled": self.filled,
            "sha256": self.sha256,
        }


def build_training_set(
    protocol: Protocol, config: DataConfig, parts: Sequence[str], workspace: Workspace
) -> TrainingSet:
    """Gather the training images of the protocol's sources and their part boxes.

    Args:
        parts: the R parts the model has, in order; without parts no labels are read.
    Raises:
        DataError: no manifest or no labels yet (with the command that makes them), labels missing while
            `missing_labels` is "require", or fewer than two identities left.
        ConfigError: several label runs to choose from, or not the one asked for; a part that the body prior lacks.
    """
    rows = pa.concat_tables([_source_rows(protocol, name, workspace) for name in protocol.sources])
    readable = pc.equal(rows["status"], ImageStatus.OK.value)
    dropped = Counter({UNREADABLE: len(rows) - int(pc.sum(readable).as_py() or 0)})
    rows = rows.filter(readable).sort_by([("dataset", "ascending"), ("path", "ascending")]).combine_chunks()
    if config.max_images_per_identity is not None:
        spaced = rows.take(pa.array(_evenly_spaced(rows, config.max_images_per_identity)))
        dropped[OVER_THE_CAP], rows = len(rows) - len(spaced), spaced
    fill = config.missing_labels == "prior"
    asked, sources = config.label_run, protocol.sources
    needed = bool(parts) and (not fill or asked is not None or bool(label_runs(workspace.labels, sources)))
    label_run = choose_label_run(asked, sources, workspace.labels) if needed else None
    boxes, answers = _boxes(rows, parts, label_run, workspace)
    missing = ~np.isin(answers, [str(status) for status in FINAL_STATUSES])  # [N, R]
    incomplete = missing.any(axis=1)
    if incomplete.any():
        places = np.flatnonzero(incomplete)
        datasets = rows["dataset"].take(pa.array(places)).to_pylist()
        why = list(zip(datasets, answers[places, missing[places].argmax(axis=1)].tolist(), strict=True))
        message = coverage(rows, why, label_run)
        command = _fill_command(datasets, label_run)
        if config.missing_labels == "require":
            raise _missing(message, command)
        log.warning("%s (data.missing_labels=%s; to label them: %s)", message, config.missing_labels, command)
        if fill:
            filled = _fill_with_prior(boxes, missing, rows, parts)
            return _numbered(rows, boxes, protocol, label_run, dropped, filled)
        dropped.update(reason for _, reason in why)
        rows, boxes = rows.filter(pa.array(~incomplete)), boxes[~incomplete]
    return _numbered(rows, boxes, protocol, label_run, dropped, {})


def _json_of_lists(*columns: Sequence[Any] | np.ndarray) -> Iterator[str]:
    """What json.dumps gives of a list of these lists, piece by piece."""
    for number, column in enumerate(columns):
        yield ", [" if number else "[["
        for start in range(0, len(column), ROWS_AT_ONCE):
            part = column[start : start + ROWS_AT_ONCE]
            values = part.tolist() if isinstance(part, np.ndarray) else list(part)
            yield (", " if start else "") + json.dumps(values)[1:-1]
        yield "]"
    yield "]"


def _source_rows(protocol: Protocol, name: str, workspace: Workspace) -> pa.Table:
    table = manifest_columns(workspace.manifest(name), _COLUMNS)
    train, people = (
        pc.equal(table[column], value).to_numpy() for column, value in (("split", "train"), ("kind", Kind.PERSON.value))
    )
    return table.filter(pa.array(trained_on(protocol, name, train, people)))


def _evenly_spaced(rows: pa.Table, most: int) -> NDArray[np.int64]:
    """At most `most` images of every identity, spread over all of its images in their order: the neighbours in a
    tracklet are near-duplicates. Ascending indices."""
    _, labels = _identities(rows)
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[order], append=-1)) + 1
    kept, start = [], 0
    for end in ends.tolist():
        steps = {round(step) for step in np.linspace(0, end - start - 1, most)}
        kept.append(order[start + np.array(sorted(steps))])
        start = end
    return np.sort(np.concatenate([*kept, np.empty(0, np.int64)]))


def _boxes(
    rows: pa.Table, parts: Sequence[str], label_run: str | None, workspace: Workspace
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, R, 4] of the rows, NaN without a final label, and the status of every label, text [N, R]; NOT_LABELLED
    where there is none."""
    shape = len(rows), len(parts)
    if label_run is None or not len(rows):
        return np.full((*shape, 4), np.nan), np.full(shape, NOT_LABELLED)
    wanted = rows.select(["dataset", "image_id", "width", "height"]).rename_columns(
        ["dataset", "image_id", "image_width", "image_height"]
    )
    wanted = wanted.append_column("number", pa.array(np.arange(len(rows))))
    with connect(labels=label_shards(workspace.labels, label_run=label_run)) as connection:
        connection.register("wanted", wanted)
        connection.register("parts", pa.table({"part": list(parts), "place": list(range(len(parts)))}))
        answers = connection.sql(
            f"select coalesce(status, ?) as status, x_min, y_min, x_max, y_max, coalesce({WRONG}, case when "
            "status != 'unreadable' and (width, height) != (image_width, image_height) then 'images of another size in "
            "the manifest' end) as wrong from wanted cross join parts "
            "left join (select * from labels where label_run = ?) using (dataset, image_id, part) "
            "order by number, place",
            params=[NOT_LABELLED, label_run],
        ).to_arrow_table()

    def where(answer: int) -> tuple[str, str]:
        row, part = divmod(answer, len(parts))
        return rows["dataset"][row].as_py(), f"{rows['path'][row]}, {parts[part]}"

    refuse_impossible(answers["wrong"], label_run, where)
    codes = pc.dictionary_encode(answers["status"]).combine_chunks()
    status = np.array(codes.dictionary.to_pylist())[codes.indices.to_numpy()].reshape(shape)
    corners = ("x_min", "y_min", "x_max", "y_max")
    boxes = np.empty((*shape, 4))
    for place, name in enumerate(corners):
        boxes[:, :, place] = answers[name].to_numpy().reshape(shape)
    final = np.isin(status, [str(one) for one in FINAL_STATUSES])
    boxes[~final | np.isnan(boxes).any(axis=2)] = np.nan
    return boxes, status


def coverage(rows: pa.Table, why: Sequence[tuple[str, str]], label_run: str | None) -> str:
    """How many images of which data set lack a part's label, and why. why: (data set, reason) of each such image."""
    counted = pc.value_counts(rows["dataset"]).to_pylist()
    total = {one["values"]: one["counts"] for one in counted}
    told = "; ".join(
        f"{name}: {count} of {total[name]} images {reason}" for (name, reason), count in sorted(Counter(why).items())
    )
    return f"training images without part boxes in label run {label_run!r}: {told}"


def _fill_command(datasets: Sequence[str], label_run: str | None) -> str:
    named = f" --label-run {label_run}" if label_run else ""
    return "; ".join(f"dgreid label {name}{named}" for name in sorted(set(datasets)))


def _missing(message: str, command: str) -> DataError:
    return DataError(
        message,
        fix=f"{command} (only the missing ones are labelled), leave these images out with data.missing_labels=drop, or "
        "take the body prior's boxes with data.missing_labels=prior",
    )


def _fill_with_prior(boxes: np.ndarray, missing: np.ndarray, rows: pa.Table, parts: Sequence[str]) -> dict[str, int]:
    """Put the body prior's box where a label is missing; returns how many boxes of which data set that were."""
    sizes = np.stack([rows[name].to_numpy() for name in ("width", "height")], axis=1)
    kinds, size_of = np.unique(sizes, axis=0, return_inverse=True)
    size_of = size_of.reshape(-1)
    for place, part in enumerate(parts):
        images = np.flatnonzero(missing[:, place])
        if len(images):
            table = np.array([_prior_box(part, int(width), int(height)) for width, height in kinds])
            boxes[images, place] = table[size_of[images]]
    images, _ = np.nonzero(missing)
    return dict(sorted(Counter(rows["dataset"].take(pa.array(images)).to_pylist()).items()))


def _prior_box(part: str, width: int, height: int) -> tuple[float, ...]:
    box = prior_box(part, width, height)
    if box is None:
        raise ConfigError(
            f"data.missing_labels=prior: the body prior has no part {part!r}", fix=f"it has {', '.join(PROPORTIONS)}"
        )
    return tuple(box)


def _identities(rows: pa.Table) -> tuple[tuple[tuple[str, int], ...], NDArray[np.int64]]:
    """All (data set, identity) in order, and which of them each row shows, int64 [N]."""
    people, labels = rows["identity"].to_numpy(), np.empty(len(rows), np.int64)
    found: list[tuple[str, int]] = []
    for name in sorted(pc.unique(rows["dataset"]).to_pylist()):
        here = pc.equal(rows["dataset"], name).to_numpy()
        own, labels_here = np.unique(people[here], return_inverse=True)
        labels[here] = labels_here + len(found)
        found += [(name, person) for person in own.tolist()]
    return tuple(found), labels


def _numbered(
    rows: pa.Table,
    boxes: np.ndarray,
    protocol: Protocol,
    label_run: str | None,
    dropped: Counter[str],
    filled: dict[str, int],
) -> TrainingSet:
    identities, labels = _identities(rows)
    if len(identities) < 2:
        left_out = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "none left out"
        raise DataError(
            f"{len(identities)} identities in {len(rows)} training images of {', '.join(protocol.sources)} "
            f"({left_out}); training needs at least 2",
            fix="add sources to the protocol, or label the images that were left out",
        )
    rows = rows.combine_chunks()

    def column(name: str) -> Column:
        return Column(rows[name].chunk(0) if rows[name].num_chunks == 1 else pa.concat_arrays(rows[name].chunks))

    return TrainingSet(
        datasets=Column(pc.dictionary_encode(column("dataset").values)),
        paths=column("path"),
        image_ids=column("image_id"),
        labels=labels,
        cameras=column("camera"),
        boxes=boxes,
        identities=identities,
        sources=tuple(protocol.sources),
        label_run=label_run,
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
        filled=filled,
    )
