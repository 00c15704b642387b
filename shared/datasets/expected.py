"""How many images, people and cameras the public sets are published with, and what it means when a copy has others."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from shared.schemas import Kind


class Counts(NamedTuple):
    images: int  # all files of the split
    identities: int  # people; neither distractors nor junk
    cameras: int  # 0: not labelled
    distractors: int = 0  # images
    junk: int = 0  # images


class Labelled(Protocol):
    """A FileRecord or a ManifestRow."""

    @property
    def split(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def identity(self) -> int | None: ...
    @property
    def camera(self) -> int | None: ...


_MSMT17 = {
    "train": Counts(32_621, 1041, 15),  # list_train and list_val
    "query": Counts(11_659, 3060, 15),
    "gallery": Counts(82_161, 3060, 15),
}
EXPECTED: dict[str, dict[str, Counts]] = {
    "market1501": {
        "train": Counts(12_936, 751, 6),
        "query": Counts(3368, 750, 6),
        "gallery": Counts(19_732, 750, 6, distractors=2798, junk=3819),
    },
    "dukemtmc": {
        "train": Counts(16_522, 702, 8),
        "query": Counts(2228, 702, 8),
        "gallery": Counts(17_661, 1110, 8),
    },
    "msmt17": _MSMT17,
    "msmt17_v2": _MSMT17,
    "cuhk03": {"train": Counts(7365, 767, 2), "query": Counts(1400, 700, 2), "gallery": Counts(5332, 700, 2)},
    "cuhk03_labeled": {"train": Counts(7368, 767, 2), "query": Counts(1400, 700, 2), "gallery": Counts(5328, 700, 2)},
    "cuhk02": {"all": Counts(7264, 1816, 10)},
    "cuhksysu": {"all": Counts(34_574, 11_934, 0)},
    "viper": {"query": Counts(632, 632, 1), "gallery": Counts(632, 632, 1)},
    "prid": {"query": Counts(385, 200, 1, distractors=185), "gallery": Counts(749, 200, 1, distractors=549)},
    "grid": {"query": Counts(250, 250, 4), "gallery": Counts(1025, 250, 6, distractors=775)},
    "ilids": {"all": Counts(476, 119, 0)},
}


def count_splits(rows: Iterable[Labelled]) -> dict[str, Counts]:
    """What was found, by split."""
    kinds: defaultdict[str, Counter[Kind]] = defaultdict(Counter)
    people, cameras = set(), set()
    for row in rows:
        kinds[row.split][row.kind] += 1
        people.add((row.split, row.identity))
        cameras.add((row.split, row.camera))
    identities = Counter(split for split, identity in people if identity is not None)
    labelled = Counter(split for split, camera in cameras if camera is not None)
    return {
        split: Counts(
            images=found.total(),
            identities=identities[split],
            cameras=labelled[split],
            distractors=found[Kind.DISTRACTOR],
            junk=found[Kind.JUNK],
        )
        for split, found in kinds.items()
    }


def differences(name: str, found: Mapping[str, Counts]) -> list[str]:
    """A sentence for every split that is not as published; nothing for sets without published numbers.

    Args:
        name: canonical name of the data set.
        found: split -> counts of this copy.
    """
    expected = EXPECTED.get(name)
    if expected is None or dict(found) == expected:
        return []
    twin = next((other for other, counts in EXPECTED.items() if other != name and counts == dict(found)), None)
    if twin:
        return [f"these are the numbers of {twin}, not of {name}: the folder holds the other release"]
    nothing = Counts(0, 0, 0)
    return [
        f"{split}: {_told(found.get(split, nothing), wanted)}"
        for split, wanted in expected.items()
        if found.get(split, nothing) != wanted
    ] + [
        f"{split}: {found[split].images:,} images that the published set does not have"
        for split in found.keys() - expected
    ]


def _told(found: Counts, wanted: Counts) -> str:
    if not found.images:
        return f"nothing is there, {wanted.images:,} images are published"
    numbers = ", ".join(
        f"{have:,} {field} instead of {should:,}"
        for field, have, should in zip(Counts._fields, found, wanted, strict=True)
        if have != should
    )
    return f"{numbers}; {_reason(found, wanted)}"


def _reason(found: Counts, wanted: Counts) -> str:
    missing = wanted.images - found.images
    if missing and missing == wanted.junk - found.junk + wanted.distractors - found.distractors:
        return "junk or distractor images were left out of this copy: gallery scores will be too good"
    if missing > 0:
        return f"{missing:,} images are missing: unpack the archive again, and look for files that were left out above"
    if missing < 0:
        return f"{-missing:,} images too many: remove what does not belong to the published set"
    return "the same number of files, otherwise labelled: the names were changed, or it is another release"
