"""The protocols that papers of this field report on, by name, and whether the data sets for them are here."""

from dataclasses import dataclass
from pathlib import Path

from reid.protocols.paper_scores import PaperScore, paper_score
from reid.protocols.protocol import Protocol, parse_protocol
from shared.datasets import locate
from shared.errors import ConfigError, DataError

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
    """One protocol of a suite. missing: names of its data sets that are not under the data root."""

    suite: str
    protocol: Protocol
    missing: tuple[str, ...]
    paper: PaperScore | None


def suite_entries(data_root: Path, suite: str | None = None) -> list[SuiteEntry]:
    """The protocols of one suite or of all. Raises ConfigError for an unknown suite, DataError as parse_protocol."""
    if suite is not None and suite not in SUITES:
        raise ConfigError(f"there is no suite {suite!r}", fix=f"choose one of {', '.join(SUITES)}")
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
    except DataError:
        return False
    return True
