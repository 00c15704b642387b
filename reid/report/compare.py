"""The page of several runs side by side: scores, paired tests, curves, cameras, and the queries that differ most."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from reid.evaluation.comparison import compare_runs, comparison_table, paired_runs, same_queries
from reid.report import tables
from reid.report.figures import Panel, cmc_panel
from reid.report.page import IMAGE_NOTE, TargetRecord, failure, one_of_each_image, page_environment, tile_maker
from reid.report.pictures import Album, part_colours
from reid.report.run_record import RunRecord, read_run
from reid.report.write import read_target
from shared.files import write_text
from shared.schemas import PARTS
from shared.workspace import Workspace

DIFFERENT = 8  # queries of a target and pair of runs, in each direction


def write_comparison(folders: Sequence[Path], workspace: Workspace, out: Path, *, images: bool = True) -> list[str]:
    """Write the page of at least two scored runs; the sentences that stand in place of what is missing.

    Args:
        folders: of the runs, in the order they are shown.
        images: whether the page holds pictures of people.
    Raises:
        DataError: a run was not scored or one of its files is damaged. ConfigError: as `compare_runs`.
        DgreidError: the page cannot be written.
    """
    groups = compare_runs(folders)
    runs = [read_run(folder) for folder in folders]
    paired, problems = paired_runs(folders, workspace)
    found = {(run.name, target): read_target(run, target) for run in runs for target in run.targets}
    problems += [problem for one in found.values() for problem in one.problems]
    album = Album(workspace) if images else None
    colours = part_colours(tuple((runs[0].config.get("model") or {}).get("parts", PARTS)))
    html = (
        page_environment()
        .get_template("compare.html")
        .render(
            names=[run.name for run in runs],
            written=datetime.now(UTC).date().isoformat(),
            differing=sorted({setting.partition("=")[0] for group in groups for setting in group["settings"]}),
            scores=_score_table(groups),
            paired=tables.gain_table(paired),
            gain_note=tables.GAIN_NOTE,
            problems=problems,
            curves=_curves(runs, found),
            cameras=_cameras(runs),
            camera_note=tables.CAMERA_NOTE,
            images=images,
            image_note=IMAGE_NOTE,
            has_masks=any(one.masks.size for one in found.values()),
            colours=colours,
            differences=_differences(runs, found, colours, album) if album else [],
            runs=_run_table(runs, groups),
            protocols=[(run.name, run.results.protocol or "not recorded") for run in runs],
            responsible_use=tables.RESPONSIBLE_USE,
        )
    )
    write_text(out, html)
    gone = [f"{album.missing:,} images cannot be found or read"] if album and album.missing else []
    return [*problems, *gone]


def _score_table(groups: Sequence[dict[str, Any]]) -> tables.Table:
    """Groups are called by their runs: all settings that differ may be a long line, and stand in the table of runs."""
    (target, _, model, number, *scores), rows = comparison_table([{**one, "settings": one["runs"]} for one in groups])
    return (target, "run", model, number, *scores), rows


def _curves(runs: Sequence[RunRecord], found: dict[tuple[str, str], TargetRecord]) -> list[tuple[str, Panel]]:
    return [
        (f"{target}: {run.name}", cmc_panel(curves))
        for target in dict.fromkeys(target for run in runs for target in run.targets)
        for run in runs
        if (one := found.get((run.name, target))) and (curves := one.cmc())
    ]


def _cameras(runs: Sequence[RunRecord]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{target}: {run.name}", heat)
        for target in dict.fromkeys(target for run in runs for target in run.targets)
        for run in runs
        if (heat := tables.camera_heat(run.results.breakdown(target, "trained")))
    ]


def _differences(
    runs: Sequence[RunRecord], found: dict[tuple[str, str], TargetRecord], colours: dict[str, str], album: Album
) -> list[tuple[str, list[dict[str, Any]]]]:
    """For every two runs and target: the queries that each of them finds better than the other by most."""
    groups = []
    for first, second in combinations(runs, 2):
        for target in [name for name in first.targets if name in second.targets]:
            records = found[first.name, target], found[second.name, target]
            one, other = (record.queries.get("trained") for record in records)
            if one is None or other is None or not same_queries(one, other):
                continue
            tiles = [
                tile_maker(target, record, queries, colours, album)
                for record, queries in zip(records, (one, other), strict=True)
            ]
            change = one.average_precision - other.average_precision
            scored = np.flatnonzero(~np.isnan(change))
            order = scored[np.argsort(change[scored], kind="stable")]
            for better, ordered in ((second, order), (first, order[::-1])):
                rows = one_of_each_image(one, ordered)[:DIFFERENT]
                chosen = [int(row) for row in rows if (change[row] > 0 if better is first else change[row] < 0)]
                names = first.name, second.name
                queries = [failure(row, one, other, tiles[0], tiles[1], names) for row in chosen]
                if queries:
                    groups.append((f"{target}: found better by {better.name} ({' against '.join(names)})", queries))
    return groups


def _run_table(runs: Sequence[RunRecord], groups: Sequence[dict[str, Any]]) -> tables.Table:
    setting = {name: ", ".join(group["settings"]) or "the same" for group in groups for name in group["runs"]}
    header = ("run", "settings that differ", "seed", "sources", "label run")
    rows: list[tuple[str, ...]] = [
        (
            run.name,
            setting[run.name],
            str(run.config.get("seed", "not recorded")),
            ", ".join(run.sources) or "not recorded",
            run.label_run or "none",
        )
        for run in runs
    ]
    return header, rows
