"""What the paper reports: Li, Gong, Zhang 2026 (MUVA), single query, Market-1501 rule, ViT-B/16 with CLIP's weights."""

from collections.abc import Iterable
from typing import NamedTuple


class PaperScore(NamedTuple):
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
