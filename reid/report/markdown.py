"""The report for terminals, pull requests and lab notebooks: the same numbers, no pictures."""

from collections.abc import Sequence
from typing import Any

from reid.report.detail_tables import camera_table, certainty_table, part_table
from reid.report.summary import headline
from reid.report.tables import (
    NO_PAPER_NUMBER,
    RESPONSIBLE_USE,
    label_table,
    paper_table,
    score_table,
    setting_rows,
    training_table,
)


def render_markdown(summary: dict[str, Any]) -> str:
    """The whole report.md."""
    sections = [
        f"# {_escape(summary['run'])}",
        _escape(headline(summary)),
        f"Protocol: {_escape(summary['protocol']) or 'not recorded'}",
        "## Scores (%)",
        markdown_table(*score_table(summary)),
    ]
    if not any(summary["paper"].values()):
        sections += [NO_PAPER_NUMBER, markdown_table(*paper_table())]
    sections += _details(summary)
    sections += ["## Training data"]
    header, rows = training_table(summary)
    sections += [markdown_table(header, rows)] if rows else ["The run folder holds no record of its training set."]
    if summary["labels"]["statuses"]:
        sections += ["## Part labels of the training images", markdown_table(*label_table(summary))]
    sections += ["## What made it", markdown_table(("what", "value"), setting_rows(summary))]
    sections += ["```sh\n" + "\n".join(summary["reproduce"]["commands"]) + "\n```"]
    if summary["missing"]:
        sections += ["## Not in this report", "\n".join(f"- {_escape(sentence)}" for sentence in summary["missing"])]
    return "\n\n".join([*sections, RESPONSIBLE_USE]) + "\n"


def _details(summary: dict[str, Any]) -> list[str]:
    """Certainty of all scores; camera pairs and parts of the trained model."""
    certainty = certainty_table(summary)
    sections = ["## How sure the scores are (%)", markdown_table(*certainty)] if certainty[1] else []
    for target, states in summary["details"].items():
        for title, table in (("Camera pairs", camera_table), ("Parts alone", part_table)):
            header, rows = table(states.get("trained", {}))
            sections += [f"### {title} of {_escape(target)} (%)", markdown_table(header, rows)] if rows else []
    return sections


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines)


def _escape(text: str) -> str:
    """Text that Markdown renders as itself, on one line, whatever a data set or folder is called."""
    flat = " ".join(str(text).split())
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("[", "\\[")):
        flat = flat.replace(character, escaped)
    return flat
