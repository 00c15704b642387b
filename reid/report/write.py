"""The report of one training run: report.json for machines, report.md for notebooks, report.html for people."""

import json
from pathlib import Path
from typing import NamedTuple

from reid.report.label_facts import read_label_facts
from reid.report.markdown import render_markdown
from reid.report.page import render_page, training_gaps
from reid.report.pictures import Album
from reid.report.retrieval import retrieve
from reid.report.run_record import read_run
from reid.report.summary import summarise
from shared.files import write_text
from shared.workspace import Workspace


class ReportPaths(NamedTuple):
    json: Path
    markdown: Path
    html: Path


def write_report(run_folder: Path, workspace: Workspace, *, images: bool = True) -> ReportPaths:
    """Write report.json, report.md and report.html into a run folder, from what the run left there.

    Only manifests, label shards and the images on disk are read besides; what is missing is said in the report.

    Args:
        images: whether the HTML page holds pictures of people. False gives figures and tables only.
    Raises:
        DataError: there is no such run, it has no scores yet, or one of its files is damaged.
        DgreidError: the reports cannot be written.
    """
    record = read_run(run_folder)
    labels = read_label_facts(record, workspace)
    retrieved = {target: retrieve(record, target, workspace) for target in record.targets}
    missing = [
        *training_gaps(record),
        *filter(None, [labels.problem, *(found.problem for found in retrieved.values())]),
    ]
    summary = summarise(record, labels, missing)
    page = render_page(summary, record, labels, retrieved, Album(workspace) if images else None)

    paths = ReportPaths(*(record.folder / f"report.{suffix}" for suffix in ("json", "md", "html")))
    write_text(paths.json, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(paths.markdown, render_markdown(summary))
    write_text(paths.html, page)
    return paths
