"""report.html: one self-contained file, its images as data URIs, its figures as inline SVG, no script."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import yaml
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from reid.evaluation.results import STATES, Examples, QueryResults
from reid.report import tables
from reid.report.figures import Panel, cmc_panel, detail_panels, training_panels
from reid.report.labels import LabelFacts, LabelledImage
from reid.report.pictures import (
    Album,
    Area,
    Picture,
    attention_areas,
    box_outlines,
    mask_areas,
    mask_outlines,
    part_colours,
)
from reid.report.run_record import RunRecord
from reid.report.summary import headline, joined, protocol_targets
from shared.schemas import PARTS

IMAGE_NOTE = "The pictures are part of this file: keep it where the data sets may be kept, or write it without images."
MASK_EXAMPLES = 8  # per target
CMC_RANKS = 20
STRIP_LENGTH = 10
SHOWN_BLOCKS = 5  # of the model's blocks, first and last included
HARDEST = 12  # queries of a target in the failure browser
MOST_CHANGED = 6  # queries that training lost, and that it gained


@dataclass(frozen=True)
class TargetRecord:
    """What evaluation left for the page about one target; `problems` say what it did not."""

    queries: dict[str, QueryResults] = field(default_factory=dict)  # by state
    mask_paths: list[str] = field(default_factory=list)
    masks: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), bool))  # bool [N, R, h, w]
    problems: list[str] = field(default_factory=list)

    def cmc(self) -> dict[str, list[float]]:
        """State -> percent at rank 1, 2, ..., the mean over the splits."""
        return {
            state: (100 * self.queries[state].cmc.mean(axis=0))[:CMC_RANKS].tolist()
            for state in STATES
            if state in self.queries
        }


@dataclass(frozen=True)
class Tile:
    """One person crop with its caption and what is drawn over it."""

    picture: Picture | None
    path: str
    description: str  # for screen readers
    caption: str
    mark: str = ""
    verdict: str = ""  # right | wrong
    outlines: list[Area] = field(default_factory=list)
    fills: list[Area] = field(default_factory=list)
    looks: list[tuple[str, str, float]] = field(default_factory=list)  # path, colour, opacity
    problems: list[str] = field(default_factory=list)
    nested: bool = False  # outlines may lie on each other: earlier ones are drawn wider

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Page:
    html: str
    missing_pictures: int  # tiles whose image is gone or unreadable


def render_page(
    summary: dict[str, Any],
    record: RunRecord,
    labels: LabelFacts,
    targets: Mapping[str, TargetRecord],
    album: Album | None,
    examples: Examples | None = None,
) -> Page:
    """The whole page. album None: no images in it, not even their paths."""
    parts = tuple((record.config.get("model") or {}).get("parts", PARTS))
    colours = part_colours(parts)
    environment = page_environment()
    named = protocol_targets(summary) or [summary["labels_of_targets"][name] for name in summary["targets"]]
    html = environment.get_template("report.html").render(
        summary=summary,
        title=f"{' + '.join(summary['sources']) or 'unrecorded sources'} → {', '.join(named)}",
        headline=headline(summary),
        scores=tables.score_table(summary),
        tests=tables.test_table(summary),
        paper_table=None if any(summary["paper"].values()) else tables.paper_table(),
        no_paper_number=tables.NO_PAPER_NUMBER,
        cmc=[_curve(target, found, summary) for target, found in targets.items()],
        intervals=tables.interval_table(summary),
        interval_note=tables.interval_note(summary),
        details=[_details(target, states.get("trained", {})) for target, states in summary["details"].items()],
        camera_note=tables.CAMERA_NOTE,
        open_set_note=tables.OPEN_SET_NOTE,
        panels=training_panels(record.stage1, record.stage2),
        training_gaps=training_gaps(record),
        training=tables.training_table(summary),
        labels=tables.label_table(summary),
        label_facts=labels,
        colours=colours,
        images=album is not None,
        image_note=IMAGE_NOTE,
        examples=[_label_tile(example, colours, album) for example in labels.examples] if album else [],
        masks=[_mask_group(target, found, colours, album) for target, found in targets.items()] if album else [],
        strips=[_strip_group(target, found, colours, album) for target, found in targets.items()] if album else [],
        seen=_seen(examples, labels, colours, album) if album and examples else [],
        gains=tables.gain_table(summary["gains"]),
        gain_note=tables.GAIN_NOTE,
        settings=tables.setting_rows(summary),
        config_text=yaml.safe_dump(record.config, sort_keys=False) if record.config else "not recorded",
        responsible_use=tables.RESPONSIBLE_USE,
    )
    return Page(html, album.missing if album else 0)


def page_environment(*packages: str) -> Environment:
    """Jinja over the templates of `packages`, then of this room (page.html, report_style.html, macros.html)."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "reid.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def training_gaps(record: RunRecord) -> list[str]:
    """A sentence for each stage without curves."""
    return [
        f"No loss curve of stage {stage}: the run folder has no readable stage{stage}/metrics.csv."
        for stage, epochs in ((1, record.stage1), (2, record.stage2))
        if not epochs
    ]


def _curve(target: str, found: TargetRecord, summary: dict[str, Any]) -> dict[str, Any]:
    curves = found.cmc()
    splits = summary["tests"].get(target, {}).get("splits", 1)
    panel: Panel | None = cmc_panel(curves) if curves else None
    note = f"Mean over {splits} splits." if splits > 1 and panel else ""
    return {"target": target, "panel": panel, "note": note, "problems": found.problems}


def _details(target: str, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "target": target,
        "panels": detail_panels(found),
        "heat": tables.camera_heat(found),
        "tables": [
            (title, table)
            for title, table in (
                ("Open set", tables.open_set_table(found)),
                ("Camera pairs", tables.camera_table(found)),
                ("Parts alone", tables.part_table(found)),
            )
            if table[1]
        ],
    }


def _label_tile(example: LabelledImage, colours: Mapping[str, str], album: Album) -> Tile:
    problems = [
        f"{part.replace('_', ' ')}: {status.replace('_', ' ')}"
        for part, status in example.statuses.items()
        if status != "ok"
    ]
    return Tile(
        album.picture(example.dataset, example.path),
        example.path,
        f"training image of {example.dataset} with the boxes of {joined(list(example.boxes)) or 'no part'}",
        example.dataset,
        outlines=box_outlines(example.boxes, colours),
        problems=problems,
    )


def _mask_group(target: str, found: TargetRecord, colours: Mapping[str, str], album: Album) -> dict[str, Any]:
    # spread over the file: its first images may all show one person
    count = len(found.mask_paths) if found.masks.size else 0
    chosen = sorted({round(place) for place in np.linspace(0, count - 1, MASK_EXAMPLES)}) if count else []
    tiles = [_mask_tile(target, found.mask_paths[index], found.masks[index], colours, album) for index in chosen]
    note = "" if tiles else "No part masks to show: the model has no parts, or evaluation did not write them."
    return {"target": target, "note": note, "tiles": tiles}


def _mask_tile(target: str, path: str, masks: np.ndarray, colours: Mapping[str, str], album: Album) -> Tile:
    picture = album.picture(target, path)
    shares = zip(colours, masks.reshape(len(masks), -1).mean(axis=1), strict=False)
    described = ", ".join(f"{part.replace('_', ' ')} {share:.0%}" for part, share in shares)
    outlines = mask_outlines(masks, list(colours.values()), picture.width, picture.height) if picture else []
    return Tile(
        picture, path, f"{target} image, visible patches: {described}", described, outlines=outlines, nested=True
    )


def _seen(
    examples: Examples, labels: LabelFacts, colours: Mapping[str, str], album: Album
) -> list[tuple[str, list[Tile]]]:
    """A row of tiles per image: its label boxes, the masks of some blocks, and where each part token looks."""
    if not examples.visible.shape[2]:
        return []
    blocks = sorted({round(place) for place in np.linspace(0, examples.visible.shape[1] - 1, SHOWN_BLOCKS)})
    rows = []
    for number, (dataset, path) in enumerate(zip(examples.datasets.tolist(), examples.paths.tolist(), strict=True)):
        picture = album.picture(dataset, path)
        if picture is None:
            continue
        size, palette = (picture.width, picture.height), list(colours.values())
        boxes = labels.boxes.get((dataset, path), {})
        tiles = [
            Tile(picture, path, f"label boxes of {joined(list(boxes)) or 'no part'}", "", mark="labels",
                 outlines=box_outlines(boxes, colours))
        ]  # fmt: skip
        for block in blocks:
            outlines = mask_outlines(examples.visible[number, block], palette, *size)
            mark = f"block {block + 1}"
            tiles.append(Tile(picture, path, f"masks of {mark}", "", mark=mark, outlines=outlines, nested=True))
        for part, attention in zip(colours, examples.attention[number], strict=False):
            share = f"{attention.sum():.0%} on patches"
            mark = part.replace("_", " ")
            areas = attention_areas(attention, colours[part], *size)
            tiles.append(Tile(picture, path, f"attention of {mark}: {share}", share, mark=mark, looks=areas))
        rows.append((f"{dataset}, {PurePosixPath(path).name}", tiles))
    return rows


def _fills(masks: np.ndarray | None, colours: Mapping[str, str], picture: Picture | None) -> list[Area]:
    if picture is None or masks is None or not masks.size:
        return []
    return mask_areas(masks, list(colours.values()), picture.width, picture.height)


def _strip_group(target: str, found: TargetRecord, colours: Mapping[str, str], album: Album) -> dict[str, Any]:
    queries = found.queries.get("trained")
    if queries is None:
        note = "No ranked galleries of the trained model."
        return {"target": target, "note": note, "strips": [], "failures": []}
    tile = tile_maker(target, found, queries, colours, album)
    strips = [_strip(title, queries, row, tile) for title, row in _chosen_queries(queries)]
    failures = _failures(queries, found.queries.get("untrained"), tile)
    return {"target": target, "note": "", "strips": strips, "failures": failures}


def tile_maker(
    target: str, found: TargetRecord, queries: QueryResults, colours: Mapping[str, str], album: Album
) -> Callable[..., Tile]:
    """Makes the tile of an image, an index into the queries' paths."""
    known = dict(zip(found.mask_paths, found.masks, strict=True))

    def tile(image: int, description: str, mark: str, verdict: str = "") -> Tile:
        path = str(queries.paths[image])
        picture = album.picture(target, path)
        camera = queries.camera(image)
        told = "no camera label" if camera is None else f"camera {camera}"
        described = ", ".join(filter(None, (description, told)))
        fills = _fills(known.get(path), colours, picture)
        return Tile(picture, path, described, told, mark=mark, verdict=verdict, fills=fills)

    return tile


def _failures(queries: QueryResults, before: QueryResults | None, tile: Callable[..., Tile]) -> list[dict[str, Any]]:
    """Groups of queries: the hardest ones, and those that training changed most. Each query has the strip of the
    trained model and, where training changed it, that of the untrained one."""
    precision = 100 * queries.average_precision
    scored = np.flatnonzero(queries.first_rank > 0)
    imperfect = scored[precision[scored] < 100]
    hardest = one_of_each_image(queries, imperfect[np.argsort(precision[imperfect], kind="stable")])[:HARDEST]
    groups = [("Lowest average precision", hardest, False)]
    if before is not None and np.array_equal(before.paths[before.query], queries.paths[queries.query]):
        change = precision - 100 * before.average_precision
        order = scored[np.argsort(change[scored], kind="stable")]
        lost = [row for row in one_of_each_image(queries, order)[:MOST_CHANGED] if change[row] < 0]
        gained = [row for row in one_of_each_image(queries, order[::-1])[:MOST_CHANGED] if change[row] > 0]
        groups += [
            ("Most lost by training", np.array(lost, int), True),
            ("Most gained by training", np.array(gained, int), True),
        ]
    return [
        {"title": title, "queries": [failure(int(row), queries, before if both else None, tile) for row in rows]}
        for title, rows, both in groups
        if len(rows)
    ]


def one_of_each_image(queries: QueryResults, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """The first of the rows of each query image: with many splits an image is a query in several of them."""
    _, first = np.unique(queries.query[rows], return_index=True)
    return rows[np.sort(first)]


def failure(
    row: int,
    queries: QueryResults,
    before: QueryResults | None,
    tile: Callable[..., Tile],
    tile_before: Callable[..., Tile] | None = None,
    names: tuple[str, str] = ("trained", "untrained"),
) -> dict[str, Any]:
    """One query of the failure browser: its ranked gallery, and that of another model where there is one."""

    def told(one: QueryResults) -> str:
        return (
            f"average precision {100 * one.average_precision[row]:.1f} %, first match at rank {one.first_rank[row]:,}"
        )

    strips = [_strip(f"{names[0]}: {told(queries)}", queries, row, tile)]
    if before is not None:
        strips.append(_strip(f"{names[1]}: {told(before)}", before, row, tile_before or tile))
    name = PurePosixPath(str(queries.paths[queries.query[row]])).name
    split = f", split {queries.split[row] + 1}" if queries.split.max() else ""
    title = (
        f"{100 * queries.average_precision[row]:.1f} %"
        if before is None or names[0] == "trained"
        else (f"{names[0]} {100 * queries.average_precision[row]:.1f} %")
    )
    title += f" ({names[1]} {100 * before.average_precision[row]:.1f} %)" if before is not None else ""
    return {"title": title, "name": name + split, "strips": strips}


def _chosen_queries(queries: QueryResults) -> list[tuple[str, int]]:
    """Best, median and worst average precision of all splits: title and row."""
    valid = np.flatnonzero(queries.first_rank > 0)
    order = valid[np.argsort(queries.average_precision[valid], kind="stable")]
    rows = {"Best": order[-1], "Median": order[len(order) // 2], "Worst": order[0]}
    chosen = {int(row): name for name, row in reversed(rows.items())}  # few queries: each shown once
    splits = int(queries.split.max()) + 1
    of = f"of {len(order):,} queries" + (f" in {splits} splits" if splits > 1 else "")
    return [
        (
            f"{name} {of}: average precision {100 * queries.average_precision[row]:.1f} %, "
            f"first correct match at rank {queries.first_rank[row]:,}"
            + (f", split {queries.split[row] + 1}" if splits > 1 else ""),
            row,
        )
        for row, name in reversed(chosen.items())
    ]


def _strip(title: str, queries: QueryResults, row: int, tile: Callable[..., Tile]) -> dict[str, Any]:
    nearest = [
        tile(
            int(image),
            f"rank {rank}, {'correct' if right else 'wrong'}",
            f"{rank} {'✓' if right else '✗'}",
            "right" if right else "wrong",
        )
        for rank, (image, right) in enumerate(_ranked(queries, row), start=1)
    ]
    return {"title": title, "tiles": [tile(int(queries.query[row]), "query", "query"), *nearest]}


def _ranked(queries: QueryResults, row: int) -> Sequence[tuple[int, bool]]:
    pairs = zip(queries.ranked[row].tolist(), queries.correct[row].tolist(), strict=True)
    return [(image, right) for image, right in pairs if image >= 0][:STRIP_LENGTH]
