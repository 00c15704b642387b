"""report.html: one self-contained file, its images as data URIs, its curves as inline SVG, no script."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from reid.evaluation.details import RESAMPLES
from reid.report import tables
from reid.report.curves import cmc_panel, training_panels
from reid.report.detail_tables import camera_table, certainty_table, part_table
from reid.report.histograms import detail_panels
from reid.report.label_facts import LabelFacts, LabelledImage
from reid.report.masks import read_masks
from reid.report.pictures import Album, Area, Picture, box_outlines, mask_areas, part_colours
from reid.report.retrieval import RankedQuery, TargetRetrieval
from reid.report.run_record import RunRecord
from reid.report.summary import headline, joined
from shared.schemas import PARTS, ManifestRow

IMAGE_NOTE = "The pictures are part of this file: keep it where the data sets may be kept, or write it without images."
MASK_EXAMPLES = 8  # per target


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
    problems: list[str] = field(default_factory=list)


def render_page(
    summary: dict[str, Any],
    record: RunRecord,
    labels: LabelFacts,
    retrieved: Mapping[str, TargetRetrieval],
    album: Album | None,
) -> str:
    """The whole page. album None: no images in it, not even their paths."""
    parts = tuple((record.config.get("model") or {}).get("parts", PARTS))
    colours = part_colours(parts)
    masks = {target: read_masks(record.folder, target) for target in record.targets} if album else {}
    environment = Environment(
        loader=PackageLoader("reid.report.write"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        summary=summary,
        title=f"{' + '.join(summary['sources']) or 'unrecorded sources'} → {', '.join(summary['targets'])}",
        headline=headline(summary),
        scores=tables.score_table(summary),
        paper_table=None if any(summary["paper"].values()) else tables.paper_table(),
        no_paper_number=tables.NO_PAPER_NUMBER,
        cmc=[_curve(target, found) for target, found in retrieved.items()],
        certainty=certainty_table(summary),
        resamples=f"{RESAMPLES:,}",
        details=[_details(target, states.get("trained", {})) for target, states in summary["details"].items()],
        panels=training_panels(record.stage1, record.stage2),
        training_gaps=training_gaps(record),
        training=tables.training_table(summary),
        labels=tables.label_table(summary),
        label_problem=labels.problem,
        colours=colours,
        images=album is not None,
        image_note=IMAGE_NOTE,
        examples=[_label_tile(example, colours, album) for example in labels.examples] if album else [],
        masks=[_mask_group(target, *found, colours, album) for target, found in masks.items()] if album else [],
        strips=[_strip_group(target, found, masks[target], colours, album) for target, found in retrieved.items()]
        if album
        else [],
        settings=tables.setting_rows(summary),
        config_text=yaml.safe_dump(record.config, sort_keys=False) if record.config else "not recorded",
        responsible_use=tables.RESPONSIBLE_USE,
    )


def training_gaps(record: RunRecord) -> list[str]:
    """A sentence for each stage without curves."""
    return [
        f"No loss curve of stage {stage}: the run folder has no readable stage{stage}/metrics.csv."
        for stage, epochs in ((1, record.stage1), (2, record.stage2))
        if not epochs
    ]


def _curve(target: str, found: TargetRetrieval) -> dict[str, Any]:
    if not found.cmc:
        return {"target": target, "panel": None, "note": found.problem}
    note = f"Mean over {found.splits} splits. " if found.splits > 1 else ""
    return {"target": target, "panel": cmc_panel(found.cmc), "note": f"{note}{found.problem}"}


def _details(target: str, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "target": target,
        "panels": detail_panels(found),
        "tables": [
            (title, table)
            for title, table in (("Camera pairs", camera_table(found)), ("Parts alone", part_table(found)))
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


def _mask_group(
    target: str, paths: list[str], masks: np.ndarray, problem: str, colours: Mapping[str, str], album: Album
) -> dict[str, Any]:
    # spread over the file: its first images may all show one person
    chosen = sorted({round(place) for place in np.linspace(0, len(paths) - 1, MASK_EXAMPLES)}) if paths else []
    tiles = [_mask_tile(target, paths[index], masks[index], colours, album) for index in chosen]
    return {"target": target, "note": problem, "tiles": tiles}


def _mask_tile(target: str, path: str, masks: np.ndarray, colours: Mapping[str, str], album: Album) -> Tile:
    picture = album.picture(target, path)
    shares = zip(colours, masks.reshape(len(masks), -1).mean(axis=1), strict=False)
    described = ", ".join(f"{part.replace('_', ' ')} {share:.0%}" for part, share in shares)
    fills = _fills(masks, colours, picture)
    return Tile(picture, path, f"{target} image, patches seen: {described}", "", fills=fills)


def _fills(masks: np.ndarray | None, colours: Mapping[str, str], picture: Picture | None) -> list[Area]:
    if picture is None or masks is None:
        return []
    return mask_areas(masks, list(colours.values()), picture.width, picture.height)


def _strip_group(
    target: str,
    found: TargetRetrieval,
    predicted: tuple[list[str], np.ndarray, str],
    colours: Mapping[str, str],
    album: Album,
) -> dict[str, Any]:
    paths, masks, _ = predicted
    known = dict(zip(paths, masks, strict=True))

    def tile(row: ManifestRow, description: str, mark: str, verdict: str = "") -> Tile:
        picture = album.picture(target, row.path)
        fills = _fills(known.get(row.path), colours, picture)
        return Tile(picture, row.path, description, _camera(row), mark=mark, verdict=verdict, fills=fills)

    return {
        "target": target,
        "note": found.problem if not found.ranked else "",
        "strips": [_strip(ranked, tile) for ranked in found.ranked],
    }


def _strip(ranked: RankedQuery, tile: Callable[..., Tile]) -> dict[str, Any]:
    nearest = [
        tile(
            row,
            f"rank {rank}, {'right' if right else 'wrong'}, {_camera(row)}",
            f"{rank} {'✓' if right else '✗'}",
            "right" if right else "wrong",
        )
        for rank, (row, right) in enumerate(ranked.nearest, start=1)
    ]
    return {"title": ranked.title, "tiles": [tile(ranked.query, "query", "query"), *nearest]}


def _camera(row: ManifestRow) -> str:
    return "camera unknown" if row.camera is None else f"camera {row.camera}"
