"""Spot checks of the transcribed table, and what the lookup says about protocols that nobody published."""

import pytest

from reid.protocols.published import PAPER_SCORES, SOURCE_NAMES, paper_score


@pytest.mark.parametrize(
    ("sources", "target", "expected"),
    [
        (["market1501"], "dukemtmc", (52.0, 72.1)),
        (["msmt17"], "market1501", (59.5, 82.7)),
        (["cuhk03"], "msmt17", (21.0, 49.8)),
        (["cuhk03", "dukemtmc", "msmt17"], "market1501", (66.7, 86.1)),  # in any order
        (["msmt17", "market1501", "dukemtmc"], "cuhk03", (48.6, 49.6)),
    ],
)
def test_published_scores(sources: list[str], target: str, expected: tuple[float, float]) -> None:
    assert paper_score(sources, target) == expected


@pytest.mark.parametrize(
    ("sources", "target"),
    [([], "dukemtmc"), (["market1501", "dukemtmc"], "msmt17"), (["msmt17_v2"], "dukemtmc"), (["caviar"], "viper")],
)
def test_other_protocols_have_none(sources: list[str], target: str) -> None:
    assert paper_score(sources, target) is None


def test_every_pair_of_the_four_sets_and_every_leave_one_out_is_there_without_a_leak() -> None:
    assert len(PAPER_SCORES) == 12 + 4
    for sources, target in PAPER_SCORES:
        assert target not in sources and {*sources, target} <= SOURCE_NAMES.keys()
