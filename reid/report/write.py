"""The report of one training run: report.json for machines, report.md for notebooks, report.html for people.

Everything in it was computed by evaluation and training; only the images are read besides.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid.evaluation.results import QueryResults, read_masks, read_queries
from reid.report import tables
from reid.report.labels import read_label_facts
from reid.report.page import TargetRecord, render_page, training_gaps
from reid.report.pictures import Album
from reid.report.run_record import RunRecord, read_run
from reid.report.summary import headline, summarise
from reid.report.tables import markdown_table, markdown_text
from shared.errors import DataError
from shared.files import write_text
from shared.workspace import Workspace


@dataclass(frozen=True)
class ReportFiles:
    json: Path
    markdown: Path
    html: Path
    html_kept: str = ""  # why the existing report.html was left as it is; "": it was written
    missing: tuple[str, ...] = ()  # what the report lacks, and the command that makes it


def write_report(run_folder: Path, workspace: Workspace, *, images: bool = True, replace: bool = False) -> ReportFiles:
    """Write report.json, report.md and report.html into a run folder, from what evaluation and training left there.

    Manifests, label shards and the images on disk are read besides; what is missing is said in the report. A
    report.html that shows pictures or figures which cannot be made any more is kept.

    Args:
        images: whether the HTML page holds pictures of people. False gives figures and tables only, and replaces
            an existing page, whose pictures are then gone.
        replace: write the page even where it shows less than the existing one.
    Raises:
        DataError: there is no such run, it has no scores yet, or one of its files is damaged.
        DgreidError: the reports cannot be written.
    """
    record = read_run(run_folder)
    labels = read_label_facts(record, workspace)
    targets = {target: _read_target(record, target) for target in record.targets}
    missing = [
        *training_gaps(record),
        *filter(None, [labels.problem, labels.note]),
        *(problem for found in targets.values() for problem in found.problems),
        *_earlier_breakdowns(record),
        *_without_gains(record),
    ]
    summary = summarise(record, labels, missing)
    page = render_page(summary, record, labels, targets, Album(workspace) if images else None)
    path = {suffix: record.folder / f"report.{suffix}" for suffix in ("json", "md", "html")}
    gone = [f"{page.missing_pictures:,} images cannot be found or read"] if page.missing_pictures else []
    kept = "" if replace or not images else _poorer(path["html"], page.html, [*gone, *missing])
    write_text(path["json"], json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(path["md"], render_markdown(summary))
    if not kept:
        write_text(path["html"], page.html)
    return ReportFiles(path["json"], path["md"], path["html"], kept, (*missing, *gone))


def _read_target(record: RunRecord, target: str) -> TargetRecord:
    """What evaluation wrote about a target, and a sentence with the command for what it did not."""
    queries: dict[str, QueryResults] = {}
    problems = []
    for state in record.results.scores[target]:
        try:
            queries[state] = read_queries(record.folder, record.results, target, state)
        except DataError as err:
            problems.append(
                f"No CMC curve and ranked galleries of {target}, {state} model: {err.what} ({_name(err, record)}). "
                f"To write them: {err.fix}."
            )
    try:
        paths, masks = read_masks(record.folder, target)
    except DataError as err:
        problems.append(
            f"No predicted part masks of {target}: {err.what} ({_name(err, record)}). To write them: {err.fix}."
        )
        return TargetRecord(queries, problems=problems)
    return TargetRecord(queries, paths, masks, problems)


def _name(err: DataError, record: RunRecord) -> str:
    return str(Path(str(err.path)).relative_to(record.folder))


def _earlier_breakdowns(record: RunRecord) -> list[str]:
    results = record.results
    pairs = [(target, state) for target, states in results.scores.items() for state in states]
    targets = dict.fromkeys(target for target, state in pairs if results.is_of_first_split(target, state))
    return [
        f"Confidence intervals and breakdowns of {target} are of the first of {results.splits(target)} splits: the run "
        f"was evaluated by an earlier version. To get those of all splits: dgreid eval --run {record.name}."
        for target in targets
    ]


def _without_gains(record: RunRecord) -> list[str]:
    results = record.results
    wanted = [target for target, states in results.scores.items() if len(states) > 1 and target not in results.gains]
    return [
        f"No paired test of {', '.join(wanted)}: the run was evaluated by an earlier version. To get it: dgreid eval "
        f"--run {record.name}."
        for _ in wanted[:1]
    ]


def _poorer(path: Path, page: str, reasons: list[str]) -> str:
    """Why an existing page must stay: something is missing, and it shows more than the new one would; else ""."""
    if not reasons or not path.is_file():
        return ""
    before, now = _contents(path.read_text(encoding="utf-8", errors="replace")), _contents(page)
    less = [f"{before[kind]:,} {kind} instead of {now[kind]:,}" for kind in before if before[kind] > now[kind]]
    return f"it shows {', '.join(less)}; {' '.join(reasons)}" if less else ""


def _contents(page: str) -> dict[str, int]:
    """How many pictures and figures a page shows."""
    return {
        "pictures": page.count('<image href="data:'),
        "ranked galleries": len(re.findall(r'<div class="strip"', page)),
        "figures": len(re.findall(r'<figure class="plot"', page)),
    }


def render_markdown(summary: dict[str, Any]) -> str:
    """report.md: the same numbers for terminals, pull requests and lab notebooks, no pictures."""
    sections = [
        f"# {markdown_text(summary['run'])}",
        markdown_text(headline(summary)),
        f"Protocol: {markdown_text(summary['protocol']) or 'not recorded'}",
        *(markdown_text(sentence) for sentence in summary["notes"]),
        "## Scores (%)",
        markdown_table(*tables.score_table(summary)),
    ]
    if not any(summary["paper"].values()):
        sections += [tables.NO_PAPER_NUMBER, markdown_table(*tables.paper_table())]
    sections += _with_rows("## Trained against untrained, on the same queries (%)", tables.gain_table(summary["gains"]))
    sections += [tables.GAIN_NOTE] if summary["gains"] else []
    sections += _with_rows("## Targets", tables.test_table(summary))
    if (intervals := tables.interval_table(summary))[1]:
        sections += ["## Confidence intervals (%)", tables.interval_note(summary), markdown_table(*intervals)]
    for target, states in summary["details"].items():
        of, trained = f"of {markdown_text(target)}, trained model (%)", states.get("trained", {})
        if (pairs := tables.camera_table(trained))[1]:
            sections += [f"### Camera pairs {of}", tables.CAMERA_NOTE, markdown_table(*pairs)]
        sections += _with_rows(f"### Parts alone {of}", tables.part_table(trained))
    sections += _with_rows("## Training data", tables.training_table(summary)) or [
        "The run folder holds no record of its training set."
    ]
    sections += _with_rows("## Part labels of the training images", tables.label_table(summary))
    sections += ["## Settings", markdown_table(("setting", "value"), tables.setting_rows(summary))]
    sections += ["```sh\n" + "\n".join(summary["reproduce"]["commands"]) + "\n```"]
    if summary["missing"]:
        listed = "\n".join(f"- {markdown_text(sentence)}" for sentence in summary["missing"])
        sections += ["## Not in this report", listed]
    return "\n\n".join([*sections, tables.RESPONSIBLE_USE]) + "\n"


def _with_rows(title: str, table: tables.Table) -> list[str]:
    return [title, markdown_table(*table)] if table[1] else []
