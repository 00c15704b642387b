from pathlib import Path

import pytest

from reid.protocols.published import PAPER_SCORES, SUITES, suite_entries
from shared.errors import ConfigError


def test_the_suites_are_the_published_ones(tmp_path: Path) -> None:
    entries = suite_entries(tmp_path)
    count = {name: sum(entry.suite == name for entry in entries) for name in SUITES}
    assert count == {"single_source": 12, "leave_one_out": 4, "all_images": 1}
    pairs = {(frozenset(e.protocol.sources), e.protocol.targets) for e in entries if e.suite != "all_images"}
    assert pairs == {(sources, (target,)) for sources, target in PAPER_SCORES}
    assert all(entry.paper for entry in entries if entry.suite != "all_images")
    last = entries[-1]
    assert last.protocol.all_images and last.paper is None
    assert last.protocol.targets == ("prid", "grid", "viper", "ilids")


def test_missing_sets_are_named(tmp_path: Path) -> None:
    for folder in ("Market-1501-v15.09.15", "DukeMTMC-reID"):
        (tmp_path / folder / "query").mkdir(parents=True)
    missing = {entry.protocol.name: entry.missing for entry in suite_entries(tmp_path, "single_source")}
    assert missing["market2duke"] == () and missing["msmt2market"] == ("msmt17",)
    assert missing["cuhk032msmt"] == ("cuhk03", "msmt17")


def test_an_unknown_suite_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown suite 'pairs'[\s\S]*single_source, leave_one_out, all_images"):
        suite_entries(tmp_path, "pairs")
