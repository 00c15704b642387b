"""Which label run counts when several hold labels of a data set.

A run that was made by correcting another one is whole: it holds every row of that one, the corrected ones replaced.
It therefore takes the other's place wherever no run is named.
"""

import json
from collections.abc import Iterable
from pathlib import Path

RECORD = "run.json"  # what made a run, in its folder
CORRECTS = "corrects"  # key of the record: the run that this one is a correction of


def corrected_runs(labels_root: Path, runs: Iterable[str]) -> set[str]:
    """Those of the runs that another of them corrects. A record that cannot be read corrects nothing."""
    return {found for run in runs if (found := _corrects(labels_root / f"label_run={run}" / RECORD))}


def _corrects(path: Path) -> str | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get(CORRECTS)
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None
