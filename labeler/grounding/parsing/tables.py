"""Tables in an answer: rows that name a part and hold its box, in a cell or as four columns, in any order."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from labeler.grounding.parsing import wording
from shared.geometry import Box

COORDINATES = (  # names of x_min, y_min, x_max, y_max
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"),
)
_NUMBER = re.compile(r"-?\d{1,7}(?:\.\d{1,6})?")
_BOX = re.compile(r"[\[(].*\d.*[\])]")
_VALUE = re.compile(r"[:=]\s{0,3}-?\d")  # a number that may be the first of the box
_RULE = re.compile(r"[\s|:=+-]*")


@dataclass
class TableRows:
    """What rows say: a part with its box or the text of its cell; and the stretches of the text that they take."""

    claims: list[tuple[str, Box | str]] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


def bare_key(name: str) -> str:
    """A key or the head of a column in lower case, letters and digits only."""
    return "".join(character for character in name.lower() if character.isalnum())


def table_rows(
    text: str, part_of: Callable[[str], str | None], number: Callable[[str | float], float]
) -> TableRows | None:
    """The rows of the tables in a text, None without one: cells between bars or tabs, or comma-separated."""
    found = TableRows()
    table: list[tuple[int, int, list[str]]] = []
    start = 0
    for line in [*text.splitlines(keepends=True), ""]:
        cells = _cells(line)
        if cells and (not table or len(cells) == len(table[0][2])):
            table.append((start, start + len(line), cells))
        elif not (table and _RULE.fullmatch(line) and line.strip()):
            _read(table, part_of, number, found)
            table = [(start, start + len(line), cells)] if cells else []
        start += len(line)
    return found if found.claims else None


def _cells(line: str) -> list[str] | None:
    if _RULE.fullmatch(line):
        return None
    if line.count("|") >= 2 or (line.count("|") == 1 and "[" in line):
        line = line.strip()
        return [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
    separator = "\t" if line.count("\t") >= 1 and "[" not in line else ","
    cells = [cell.strip(" \t\r\n\"'") for cell in line.split(separator)]
    return cells if len(cells) >= 5 and not any(mark in line for mark in "[](){}") else None


def _read(
    table: Sequence[tuple[int, int, list[str]]],
    part_of: Callable[[str], str | None],
    number: Callable[[str | float], float],
    found: TableRows,
) -> None:
    if not table:
        return
    head = table[0][2]
    has_head = not any(_NUMBER.fullmatch(cell) or _BOX.search(cell) for cell in head)
    columns = _columns(head) if has_head else None
    over = {index: part for index, cell in enumerate(head) if has_head and (part := part_of(cell))}
    for start, end, cells in table[1:] if has_head else table:
        named = [
            part
            for cell in cells
            if wording.has_words(cell) and not _BOX.search(cell) and not _VALUE.search(cell) and (part := part_of(cell))
        ]
        boxes = [cell for cell in cells if _BOX.search(cell)]
        numeric = [index for index, cell in enumerate(cells) if _NUMBER.fullmatch(cell)]
        if not named and len(over) > 1 and all(_BOX.search(cells[index]) for index in over):
            found.claims += [(part, cells[index]) for index, part in over.items()]
            found.spans.append((start, end))
            continue
        if len(named) != 1 or len(over) > 1:
            if named or len(numeric) < 4 or boxes:
                continue
            found.spans.append((start, end))  # the row of another thing
            continue
        if len(boxes) == 1:
            found.claims.append((named[0], boxes[0]))
        elif not boxes and columns and all(index in numeric for index in columns):
            found.claims.append((named[0], Box(*(number(cells[index]) for index in columns))))
        elif not boxes and not has_head and len(numeric) == 4 and numeric[-1] - numeric[0] == 3:
            found.claims.append((named[0], Box(*(number(cells[index]) for index in numeric))))
        elif not boxes and not numeric and any(map(wording.says_nothing, cells)):
            found.claims.append((named[0], "none"))
        else:
            continue
        found.spans.append((start, end))


def _columns(head: Sequence[str]) -> list[int] | None:
    """The columns of x_min, y_min, x_max, y_max."""
    keys = [bare_key(cell) for cell in head]
    if {"width", "height", "w", "h"} & set(keys):
        return None
    for names in COORDINATES:
        if all(keys.count(name) == 1 for name in names):
            return [keys.index(name) for name in names]
    return None
