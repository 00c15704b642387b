"""Tables of what stands behind the scores: their certainty, camera pairs and parts."""

from typing import Any

from reid.report.tables import SCORE_TITLES, Table

SHOWN = ("mean_ap", "rank_1")
MAX_CAMERA_PAIRS = 60  # more are in report.json only


def certainty_table(summary: dict[str, Any]) -> Table:
    """Per target and model: the bootstrap interval and, with several splits, the standard error of their mean."""
    header = ("target", "model", *(f"{SCORE_TITLES[name]}, 95 % interval" for name in SHOWN))
    header += tuple(f"{SCORE_TITLES[name]}, standard error" for name in SHOWN)
    rows = []
    for target, states in summary["details"].items():
        for state, found in states.items():
            intervals = found.get("intervals") or {}
            errors = (summary["per_split"].get(target, {}).get(state) or {}).get("standard_error") or {}
            cells = [f"{low:.1f} to {high:.1f}" for low, high in (intervals[name] for name in SHOWN if intervals)]
            told = [f"{errors[name]:.2f}" if name in errors else "one split" for name in SHOWN]
            rows.append((target, state, *(cells or ["–", "–"]), *told))
    return header, rows


def camera_table(details: dict[str, Any]) -> Table:
    """The camera pairs of one model on one target, the hardest first."""
    pairs = sorted(details.get("camera_pairs") or [], key=lambda pair: pair["mean_ap"])
    rows: list[tuple[str, ...]] = [
        (
            f"{pair['query_camera']} → {pair['gallery_camera']}",
            f"{pair['queries']:,}",
            f"{pair['mean_ap']:.1f}",
            f"{pair['rank_1']:.1f}",
        )
        for pair in pairs[:MAX_CAMERA_PAIRS]
    ]
    return ("query → gallery camera", "queries", "mAP", "Rank-1"), rows


def part_table(details: dict[str, Any]) -> Table:
    """What each block of the feature reaches alone."""
    parts = details.get("parts") or {}
    rows: list[tuple[str, ...]] = [
        (name.replace("_", " "), f"{found['mean_ap']:.1f}", f"{found['rank_1']:.1f}") for name, found in parts.items()
    ]
    return ("feature of", "mAP", "Rank-1"), rows
