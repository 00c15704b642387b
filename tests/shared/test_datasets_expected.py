"""Published counts against generated trees with the real sets' file names and numbers.

The big trees are listings, not files: readers look at names only.
"""

from collections.abc import Iterator
from itertools import count, cycle, islice
from pathlib import Path

import pytest

import shared.datasets.records
from shared.datasets import EXPECTED, Counts, count_splits, differences, locate, resolve_name, scan_dataset
from shared.datasets.records import FileRecord, Tree
from shared.errors import DataError

Names = dict[str, list[str]]  # folder -> file names
MARKET = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def market_names(dataset: str, template: str) -> Names:
    """Every split of a set in the Market-1501 layout with its published numbers; train and test people are apart."""
    names, first = {}, 1
    for split in ("train", "query", "gallery"):
        wanted = EXPECTED[dataset][split]
        people = wanted.images - wanted.distractors - wanted.junk
        identities = islice(cycle(range(first, first + wanted.identities)), people)
        labels = [*identities, *[0] * wanted.distractors, *[-1] * wanted.junk]
        cameras = cycle(range(1, wanted.cameras + 1))
        names[MARKET[split]] = [
            template.format(id="-1" if who < 0 else f"{who:04d}", cam=cam, n=n)
            for who, cam, n in zip(labels, cameras, count(), strict=False)
        ]
        first += wanted.identities if split == "train" else 0
    return names


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Make a folder whose listing is given instead of written."""

    def make(folder: str, names: Names) -> Path:
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True, exist_ok=True)
        listing = sorted(f"{inside}/{name}" for inside, found in names.items() for name in found)
        monkeypatch.setattr(shared.datasets.records, "walk_files", lambda root: Tree(listing))
        return tmp_path

    yield make


@pytest.mark.parametrize(
    ("dataset", "folder", "template"),
    [
        ("market1501", "Market-1501-v15.09.15", "{id}_c{cam}s1_{n:06d}_00.jpg"),
        ("dukemtmc", "DukeMTMC-reID", "{id}_c{cam}_f{n:07d}.jpg"),
        ("cuhk03", "cuhk03-np/detected", "{id}_c{cam}_{n}.png"),
        ("cuhk03_labeled", "cuhk03-np/labeled", "{id}_c{cam}_{n}.png"),
    ],
)
def test_published_numbers_in_market_layout(dataset: str, folder: str, template: str, pretend) -> None:
    root = pretend(folder, market_names(dataset, template))
    found = count_splits(scan_dataset(dataset, root).files)
    assert found == EXPECTED[dataset] and differences(dataset, found) == []


def test_published_numbers_of_msmt17_lists(pretend) -> None:
    lists = {
        "list_train.txt": (30_248, 1041, "train"),
        "list_val.txt": (2373, 1041, "train"),
        "list_query.txt": (11_659, 3060, "test"),
        "list_gallery.txt": (82_161, 3060, "test"),
    }
    names: Names = {"train": [], "test": []}
    texts, number = {}, count()
    for file, (images, people, place) in lists.items():
        lines = [
            f"{who:04d}/{who:04d}_{next(number):06d}_{camera:02d}_0303morning_0015_0.jpg {who}"
            for who, camera in zip(islice(cycle(range(people)), images), cycle(range(1, 16)), strict=False)
        ]
        texts[file] = lines
        names[place] += [line.split()[0] for line in lines]
    root = pretend("MSMT17_V1", names)
    for file, lines in texts.items():
        (root / "MSMT17_V1" / file).write_text("\n".join(lines) + "\n")
    found = count_splits(scan_dataset("msmt17", root).files)
    assert found == EXPECTED["msmt17"] and differences("msmt17", found) == []


def test_published_numbers_of_cuhk02(pretend) -> None:
    pairs = {"P1": 971, "P2": 306, "P3": 107, "P4": 193, "P5": 239}
    names = {
        f"{pair}/cam{side}": [f"{who:03d}_{n}.png" for who in range(1, people + 1) for n in (1, 2)]
        for pair, people in pairs.items()
        for side in (1, 2)
    }
    root = pretend("cuhk02/Dataset", names)
    found = list(scan_dataset("C2", root).files)
    assert differences("cuhk02", count_splits(found)) == []
    assert found[0] == FileRecord("P1/cam1/001_1.png", "all", 10_001, 1)
    assert found[-1] == FileRecord("P5/cam2/239_2.png", "all", 50_239, 10)


def test_published_numbers_of_cuhk_sysu(pretend) -> None:
    people = cycle(range(1, 11_935))
    names = [f"p{who}_s{n % 18_184 + 1}_{n // 18_184 + 1}.jpg" for n, who in zip(range(34_574), people, strict=False)]
    root = pretend("CUHK-SYSU", {"cropped_images": [*names, "p0_s1_1.jpg", "readme.jpg"]})
    scanned = scan_dataset("cs", root)
    assert differences("cuhksysu", count_splits(scanned.files)) == []
    assert [len(paths) for paths in scanned.skipped.values()] == [2]


def plant(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_both_releases_of_cuhk03_are_found_in_one_folder(tmp_path: Path) -> None:
    for release in ("detected", "labeled"):
        plant(tmp_path, f"cuhk03-np/{release}/query/0001_c1_1.png")
    assert locate("c3", tmp_path) == tmp_path / "cuhk03-np" / "detected"
    assert locate("cuhk03_labeled", tmp_path) == tmp_path / "cuhk03-np" / "labeled"
    assert resolve_name("c3l", tmp_path) == "cuhk03_labeled"


def test_one_release_of_cuhk03_is_never_taken_for_the_other(tmp_path: Path) -> None:
    plant(tmp_path, "cuhk03-np/labeled/query/0001_c1_1.png")
    assert locate("cuhk03_labeled", tmp_path) == tmp_path / "cuhk03-np" / "labeled"
    with pytest.raises(DataError):
        locate("cuhk03", tmp_path)
    plant(tmp_path, "other/cuhk03/query/0001_c1_1.png")
    assert locate("cuhk03", tmp_path / "other").name == "cuhk03"
    with pytest.raises(DataError, match=r"was not found|not complete"):
        locate("cuhk03_labeled", tmp_path / "other")


def test_a_mismatch_is_explained() -> None:
    market = EXPECTED["market1501"]
    assert differences("market1501", market) == []
    fewer = {**market, "train": Counts(12_930, 751, 6)}
    (told,) = differences("market1501", fewer)
    assert "train: 12,930 images instead of 12,936; 6 images are missing" in told
    no_junk = {**market, "gallery": Counts(15_913, 750, 6, distractors=2798)}
    assert "junk or distractor images were left out" in differences("market1501", no_junk)[0]
    (extra,) = differences("viper", {**EXPECTED["viper"], "all": Counts(3, 1, 0)})
    assert extra == "all: 3 images that the published set does not have"
    (other,) = differences("cuhk03", EXPECTED["cuhk03_labeled"])
    assert "these are the numbers of cuhk03_labeled" in other
    assert "otherwise labelled" in differences("ilids", {"all": Counts(476, 118, 0)})[0]
    assert "4 images too many" in differences("ilids", {"all": Counts(480, 119, 0)})[0]
    assert "query: nothing is there" in differences("viper", {"gallery": EXPECTED["viper"]["gallery"]})[0]
    assert differences("mine", {"all": Counts(1, 1, 1)}) == []
