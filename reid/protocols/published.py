"""What papers report: the protocols of their tables, by suite, and the scores of the MUVA paper."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reid.protocols.protocol import Protocol, parse_protocol
from shared.datasets import locate
from shared.errors import ConfigError, UsageError


class PaperScore(NamedTuple):
    """Of Li, Gong, Zhang 2026 (MUVA): single query, Market-1501 rule, ViT-B/16 with CLIP's weights."""

    mean_ap: float  # percent
    rank_1: float  # percent


SOURCE_NAMES = {
    "market1501": "Market-1501",
    "dukemtmc": "DukeMTMC-reID",
    "msmt17": "MSMT17",
    "cuhk03": "CUHK03-NP (detected)",
}

# (sources, target) -> score. Training uses the sources' train images, testing the target's own query and gallery.
PAPER_SCORES: dict[tuple[frozenset[str], str], PaperScore] = {
    (frozenset({"market1501"}), "dukemtmc"): PaperScore(52.0, 72.1),
    (frozenset({"market1501"}), "msmt17"): PaperScore(27.6, 56.8),
    (frozenset({"market1501"}), "cuhk03"): PaperScore(38.8, 40.8),
    (frozenset({"dukemtmc"}), "market1501"): PaperScore(51.4, 78.3),
    (frozenset({"dukemtmc"}), "msmt17"): PaperScore(26.8, 55.7),
    (frozenset({"dukemtmc"}), "cuhk03"): PaperScore(29.4, 31.1),
    (frozenset({"msmt17"}), "market1501"): PaperScore(59.5, 82.7),
    (frozenset({"msmt17"}), "dukemtmc"): PaperScore(62.0, 77.8),
    (frozenset({"msmt17"}), "cuhk03"): PaperScore(40.2, 42.0),
    (frozenset({"cuhk03"}), "market1501"): PaperScore(45.1, 70.2),
    (frozenset({"cuhk03"}), "dukemtmc"): PaperScore(45.6, 66.7),
    (frozenset({"cuhk03"}), "msmt17"): PaperScore(21.0, 49.8),
    (frozenset({"dukemtmc", "msmt17", "cuhk03"}), "market1501"): PaperScore(66.7, 86.1),
    (frozenset({"market1501", "msmt17", "cuhk03"}), "dukemtmc"): PaperScore(63.8, 79.4),
    (frozenset({"market1501", "dukemtmc", "cuhk03"}), "msmt17"): PaperScore(34.5, 63.1),
    (frozenset({"market1501", "dukemtmc", "msmt17"}), "cuhk03"): PaperScore(48.6, 49.6),
}


def paper_score(sources: Iterable[str], target: str) -> PaperScore | None:
    """The published score of training on exactly these sources (canonical names) and testing on `target`, or None."""
    return PAPER_SCORES.get((frozenset(sources), target))


_SETS = ("market", "duke", "msmt", "cuhk03")

SUITES: dict[str, tuple[str, ...]] = {
    # one source, one target: every pair of the four large sets
    "single_source": tuple(f"{source}2{target}" for source in _SETS for target in _SETS if source != target),
    # three sources, the fourth is the target
    "leave_one_out": tuple("+".join(s for s in _SETS if s != target) + f"2{target}" for target in _SETS),
    # every image of five sources, four small targets, each the mean of 10 random splits
    "all_images": ("all-images:market+duke+cuhk02+cuhk03+cuhksysu2prid+grid+viper+ilids",),
}


@dataclass(frozen=True)
class SuiteEntry:
    """One protocol of a suite. missing: its data sets that are not under the data root."""

    suite: str
    protocol: Protocol
    missing: tuple[str, ...]
    paper: PaperScore | None


def suite_entries(data_root: Path, suite: str | None = None) -> list[SuiteEntry]:
    """The protocols of one suite or of all. Raises ConfigError for an unknown suite, DataError as parse_protocol."""
    if suite is not None and suite not in SUITES:
        raise ConfigError(f"unknown suite {suite!r}", fix=f"choose one of {', '.join(SUITES)}")
    entries = []
    for name in [suite] if suite else SUITES:
        for text in SUITES[name]:
            protocol = parse_protocol(text, data_root)
            missing = [one for one in (*protocol.sources, *protocol.targets) if not _is_there(one, data_root)]
            paper = None if protocol.all_images else paper_score(protocol.sources, protocol.targets[0])
            entries.append(SuiteEntry(name, protocol, tuple(missing), paper))
    return entries


def _is_there(dataset: str, data_root: Path) -> bool:
    try:
        locate(dataset, data_root)
    except UsageError:
        return False
    return True
