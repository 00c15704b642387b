"""The report's tables as rows of text, shared by the Markdown and the HTML report; and any table as Markdown."""

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from reid.evaluation.results import FURTHER, SCORE_TITLES, SOURCE
from reid.protocols.published import PAPER_SCORES, SOURCE_NAMES

ROLES = {FURTHER: "further data set, not in the protocol", SOURCE: "trained on: supervised, not cross-domain"}
INTERVAL_SCORES = ("mean_ap", "rank_1")
MAX_CAMERA_PAIRS = 60  # more are in report.json only
MAX_HEAT_CELLS = 400
GAIN_NOTE = (
    "Paired randomisation test over identities (10,000 swaps) on the same queries, all splits; the interval draws "
    "identities with replacement. It says whether these two models differ on people like these, not whether another "
    "seed would give the same: for that train with several seeds and use dgreid compare. With fewer than about 30 "
    "people the interval is too narrow: then go by p."
)
NO_PAPER_NUMBER = (
    "No number has been published for this protocol. The paper's own results, on other data sets and with CLIP's "
    "weights, are listed for orientation only; they cannot be compared with the scores above."
)
CAMERA_NOTE = (
    "Queries of one camera against the gallery images of one other camera. Each pair searches only a part of the "
    "gallery, so with more than two cameras the pairs do not average to the score of the whole target."
)
RESPONSIBLE_USE = (
    "Research use only. The people in these data sets did not consent to product use: "
    "do not pass their pictures on, do not try to name anybody, do not deploy models trained on them."
)

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def score_table(summary: dict[str, Any]) -> Table:
    """Per target: trained, untrained, difference and, where published, the paper's score."""
    header = ("target", "model", *SCORE_TITLES.values())
    rows = []
    for target, states in summary["scores"].items():
        label = summary["labels_of_targets"][target]
        for state in ("trained", "untrained"):
            if state in states:
                spread = summary["per_split"].get(target, {}).get(state)
                rows.append((label, state, *_cells(states[state], spread and spread["std"])))
        if {"trained", "untrained"} <= states.keys():
            gains = {
                name: states["trained"][name] - states["untrained"][name]
                for name in states["trained"].keys() & states["untrained"].keys()
            }
            rows.append((label, "difference", *(f"{gains[n]:+.1f}" if n in gains else "–" for n in SCORE_TITLES)))
        if paper := summary["paper"].get(target):
            rows.append((label, "paper", *_cells(paper, None)))
    return header, rows


def test_table(summary: dict[str, Any]) -> Table:
    """What each target was tested with; no rows for runs of a version that did not record it."""
    header = ("target", "query and gallery", "splits", "queries scored", "in the gallery too")
    rows: list[tuple[str, ...]] = []
    for target, test in summary["tests"].items():
        role = f" ({ROLES[test['role']]})" if test["role"] in ROLES else ""
        scored = f"{test['valid_queries']:,} of {test['queries']:,}"
        copies = f"{test['duplicates']:,}, {test['scored_duplicates']:,} scored" if test["duplicates"] else "none"
        rows.append((target + role, test["rule"], str(test["splits"]), scored, copies))
    return header, rows


def paper_table() -> Table:
    """The paper's whole table, for orientation."""
    return ("trained on", "tested on", "mAP", "Rank-1"), [
        (
            " + ".join(title for name, title in SOURCE_NAMES.items() if name in sources),
            SOURCE_NAMES[target],
            f"{score.mean_ap:.1f}",
            f"{score.rank_1:.1f}",
        )
        for (sources, target), score in PAPER_SCORES.items()
    ]


def training_table(summary: dict[str, Any]) -> Table:
    """What was trained on; no rows when the run did not record it."""
    record = summary["training_set"] or {}
    rows: list[tuple[str, ...]] = [("sources", ", ".join(record.get("sources", [])))] if record else []
    for name in ("images", "identities", "cameras"):
        if name in record:
            rows.append((name, count(record[name])))
    dropped = {reason: number for reason, number in (record.get("dropped") or {}).items() if number}
    rows += [(f"left out: {reason}", count(number)) for reason, number in dropped.items()]
    filled = record.get("filled") or {}
    rows += [(f"boxes of the body prior: {name}", count(number)) for name, number in filled.items()]
    if record and not dropped:
        rows.append(("left out", "nothing"))
    return ("training set", "value"), rows


def label_table(summary: dict[str, Any]) -> Table:
    """How the questions for each part ended, as image counts."""
    statuses: dict[str, dict[str, int]] = summary["labels"]["statuses"]
    kinds = sorted({kind for found in statuses.values() for kind in found}, key=lambda kind: (kind != "ok", kind))
    rows = [
        (part.replace("_", " "), *(count(found.get(kind, 0)) for kind in kinds)) for part, found in statuses.items()
    ]
    return ("part", *(kind.replace("_", " ") for kind in kinds)), rows


def interval_table(summary: dict[str, Any]) -> Table:
    """Per target and model: the bootstrap interval and, with several splits, the standard error of their mean."""
    header = ("target", "model", *(f"{SCORE_TITLES[name]}, 95 % interval" for name in INTERVAL_SCORES))
    header += tuple(f"{SCORE_TITLES[name]}, standard error" for name in INTERVAL_SCORES)
    rows = []
    for target, states in summary["details"].items():
        for state, found in states.items():
            intervals = found.get("intervals") or {}
            errors = (summary["per_split"].get(target, {}).get(state) or {}).get("standard_error") or {}
            cells = [_interval(*intervals[name]) for name in INTERVAL_SCORES if intervals]
            told = [f"{errors[name]:.2f}" if name in errors else "one split" for name in INTERVAL_SCORES]
            rows.append((target, state, *(cells or ["–", "–"]), *told))
    return header, rows


def _interval(low: float, high: float) -> str:
    return f"{low:.1f} to {high:.1f}" if low < high else f"none: {low:.1f} in every resample"


def interval_note(summary: dict[str, Any]) -> str:
    """What the intervals are."""
    resamples = {found.get("resamples", 1000) for states in summary["details"].values() for found in states.values()}
    drawn = " or ".join(f"{number:,}" for number in sorted(resamples)) or "no"
    return (
        f"95 % percentile bootstrap over identities, {drawn} resamples, each identity with all its queries. With "
        "several splits every resample is scored on all of them and averaged. The standard error is of the mean over "
        "the splits; splits share people, so it is a lower bound."
    )


OPEN_SET_NOTE = (
    "Half of the people are taken out of the gallery, so that their queries show unknown people. Identified: queries "
    "of known people whose nearest image is the right person and near enough; false alarms: queries of unknown people "
    "that are near enough, too. AUROC: how well the distance to the nearest image tells known from unknown people."
)


def open_set_table(details: dict[str, Any]) -> Table:
    """Open-set identification; without rows where an evaluation has none."""
    found = details.get("open_set") or {}
    rows: list[tuple[str, ...]] = [
        (f"identified at {rate} % false alarms", "too few unknown queries" if share is None else f"{share:.1f}")
        for rate, share in found.get("rates", {}).items()
    ]
    return ("open set", "%"), rows + ([("AUROC", f"{found['auroc']:.1f}")] if found else [])


def gain_table(gains: dict[str, dict[str, Any]]) -> Table:
    """Paired differences, by target (or whatever they are of) and score."""
    header = ("target", "score", "difference", "95 % interval", "p", "people")
    rows: list[tuple[str, ...]] = [
        (
            target,
            SCORE_TITLES[name],
            f"{one['difference']:+.1f}",
            f"{one['low']:+.1f} to {one['high']:+.1f}",
            f"{one['p_value']:.4f}" if one["p_value"] >= 0.0002 else "< 0.0002",
            f"{one['identities']:,}",
        )
        for target, scores in gains.items()
        for name, one in scores.items()
        if name in SCORE_TITLES
    ]
    return header, rows


def camera_heat(details: dict[str, Any]) -> dict[str, Any] | None:
    """mAP by query camera (rows) and gallery camera (columns); None without two pairs."""
    pairs = {(one["query_camera"], one["gallery_camera"]): one for one in details.get("camera_pairs") or []}
    if len(pairs) < 2 or len(pairs) > MAX_HEAT_CELLS:
        return None
    return {
        "columns": sorted({gallery for _, gallery in pairs}),
        "rows": sorted({query for query, _ in pairs}),
        "mean_ap": {pair: one["mean_ap"] for pair, one in pairs.items()},
        "queries": {pair: one["queries"] for pair, one in pairs.items()},
    }


def camera_table(details: dict[str, Any]) -> Table:
    """The camera pairs of one model on one target, lowest mAP first."""
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


def setting_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What made the run: labels, configuration, software, time."""
    config, versions, labels = summary["config"], summary["versions"], summary["labels"]
    rows = [("label run", labels["label_run"] or "not recorded")]
    for made in labels["made_by"]:
        described = f"{made['engine']} · {made['model']} · prompt {made['prompt_version']}"
        rows.append(("labels made by", f"{described} ({count(made['rows'])} rows)"))
    rows += [(name, str(config[name])) for name in ("preset", "seed", "device", "precision") if name in config]
    model = config.get("model") or {}
    if model:
        size = model.get("image_size") or ("?", "?")
        weights = model.get("weights_file") or model.get("pretrained") or "random initialisation"
        rows.append(("model", f"{model.get('backbone')} · {size[0]} × {size[1]} px · stride {model.get('stride')}"))
        rows.append(("weights", str(weights)))
    changed = summary["reproduce"]["changed_settings"]
    if changed:
        rows.append(("changed from the preset", ", ".join(changed)))
    rows += [("code", str(versions["git"]))] if versions.get("git") else []
    if versions.get("python"):
        rows.append(("python", f"{versions['python']} on {versions.get('machine', 'an unrecorded machine')}"))
    rows += [(name, str(version)) for name, version in (versions.get("packages") or {}).items()]
    rows += [(f"time: {name}", duration(seconds)) for name, seconds in summary["seconds"].items()]
    return rows


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in GitHub's Markdown; whatever stands in a cell renders as itself, on one line."""
    cells = [[markdown_text(cell) for cell in row] for row in rows]
    return tabulate(cells, headers=[markdown_text(cell) for cell in header], tablefmt="github", disable_numparse=True)


def markdown_text(text: str) -> str:
    """Text that Markdown renders as itself, on one line, whatever a data set or folder is called."""
    flat = " ".join(str(text).split())
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("[", "\\[")):
        flat = flat.replace(character, escaped)
    return flat


def count(number: Any) -> str:
    """1234 -> 1,234; a mapping or list as its parts."""
    if isinstance(number, dict):
        return ", ".join(f"{name} {count(value)}" for name, value in number.items())
    if isinstance(number, (list, tuple)):
        return ", ".join(str(entry) for entry in number)
    return f"{number:,}" if isinstance(number, int) else str(number)


def duration(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return str(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _cells(scores: dict[str, float], std: dict[str, float] | None) -> list[str]:
    return [
        f"{scores[name]:.1f}" + (f" ± {std[name]:.1f}" if std and name in std else "") if name in scores else "–"
        for name in SCORE_TITLES
    ]
