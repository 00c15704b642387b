"""Public layouts: generated trees with the real naming, and the real small sets where they are."""

import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from shared.datasets import known_datasets, locate, resolve_name, scan_dataset
from shared.datasets.records import (
    DAMAGED_LINE,
    ELSEWHERE,
    FOREIGN_NAME,
    HIDDEN,
    NOT_AN_IMAGE,
    NOT_LISTED,
    NOT_THERE,
    OUT_OF_RANGE,
    FileRecord,
    Files,
    number_cameras,
    number_identities,
    walk_files,
)
from shared.errors import ConfigError, DataError
from shared.schemas import Kind

REAL = Path(os.environ.get("REID_SHARED") or Path(__file__).parents[2] / ".." / "shared") / "datasets"


def plant(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 4)).save(root / path)


def records(name: str, root: Path) -> list[tuple[str, str, int | str, int | None]]:
    """A kind stands in the place of an identity that there is not."""
    return [(r.path, r.split, _who(r), r.camera) for r in scan_dataset(name, root).files]


def _who(record: FileRecord) -> int | str:
    return str(record.kind) if record.identity is None else record.identity


def test_files_are_the_records_sorted_by_path_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.datasets.records._RECORDS_AT_ONCE", 2)
    given = [
        FileRecord("b/ä.jpg", "train", 2**63 - 1, 2**31 - 1),
        FileRecord("b/a\U0001f600.jpg", "query", None, None, Kind.JUNK),
        FileRecord("a.jpg", "train", -2, 0, Kind.PERSON, "Ann", "door"),
        FileRecord("a.jpg", "all", -2, None, Kind.PERSON, "Ann"),
        FileRecord("b/a\uffff.jpg", "query", None, 3, Kind.DISTRACTOR),
    ]
    wanted = sorted(given, key=lambda record: (record.path, record.split))
    for order in (given, given[::-1], wanted):
        files = Files(order)
        assert list(files) == list(files) == wanted and len(files) == 5
        assert all(isinstance(record.kind, Kind) for record in files)
    assert not Files(()) and list(Files(())) == []


def test_words_of_files_become_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.datasets.records._RECORDS_AT_ONCE", 2)
    said = [
        ("1.jpg", "bo", "2"),
        ("2.jpg", "ann", ""),
        ("3.jpg", "none", "1"),
        ("4.jpg", "bo", "1"),
        ("5.jpg", "7", "2"),
    ]
    named = Files(FileRecord(path, "all", None, None, Kind.PERSON, who, where) for path, who, where in reversed(said))
    files, (about_people, about_cameras, *_) = named.numbered({"none": Kind.JUNK})
    assert [(r.path, r.identity, r.camera, r.kind, r.identity_name, r.camera_name) for r in files] == [
        ("1.jpg", 3, 2, Kind.PERSON, "bo", None),
        ("2.jpg", 2, None, Kind.PERSON, "ann", None),
        ("3.jpg", None, 1, Kind.JUNK, "none", None),
        ("4.jpg", 3, 1, Kind.PERSON, "bo", None),
        ("5.jpg", 1, 2, Kind.PERSON, "7", None),
    ]
    assert "3 identities were numbered" in about_people and not about_cameras


def test_files_are_held_as_columns() -> None:
    files = Files(FileRecord(f"{n // 10:06d}_c{n % 6}_{n:07d}.jpg", "all", n // 10, n % 6) for n in range(20_000))
    assert files._table.get_total_buffer_size() < 70 * len(files)  # bytes; a record with its path has over 200


def test_market1501_reads_people_distractors_junk_and_counts_the_rest(tmp_path: Path) -> None:
    market = tmp_path / "Market-1501-v15.09.15"
    plant(
        market,
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "query/0003_c6s3_077467_00.jpg",
        "bounding_box_test/0003_c2s1_000551_01.jpg",
        "bounding_box_test/0000_c3s2_103552_01.jpg",
        "bounding_box_test/-1_c1s1_000401_03.jpg",
        "bounding_box_test/unnamed.jpg",
        "bounding_box_test/._0003_c2s1_000551_01.jpg",
        "gt_bbox/0001_c1s1_001051_00.jpg",
    )
    (market / "bounding_box_test" / "Thumbs.db").write_bytes(b"x")
    assert records("market", tmp_path) == [
        ("bounding_box_test/-1_c1s1_000401_03.jpg", "gallery", "junk", 1),
        ("bounding_box_test/0000_c3s2_103552_01.jpg", "gallery", "distractor", 3),
        ("bounding_box_test/0003_c2s1_000551_01.jpg", "gallery", 3, 2),
        ("bounding_box_train/0002_c1s1_000451_03.jpg", "train", 2, 1),
        ("query/0003_c6s3_077467_00.jpg", "query", 3, 6),
    ]
    assert scan_dataset("market", tmp_path).skipped == {
        NOT_AN_IMAGE: ["bounding_box_test/Thumbs.db"],
        FOREIGN_NAME: ["bounding_box_test/unnamed.jpg"],
        HIDDEN: ["bounding_box_test/._0003_c2s1_000551_01.jpg"],
        ELSEWHERE: ["gt_bbox/0001_c1s1_001051_00.jpg"],
    }


def test_market1501_numbers_from_zero_are_people_and_cameras(tmp_path: Path) -> None:
    names = ("bounding_box_train/0000_c0_1.jpg", "bounding_box_test/0000_c1_1.jpg", "bounding_box_test/-1_c0_1.jpg")
    plant(tmp_path / "market", *names, "query/0001_c0_1.jpg", "bounding_box_test/0001_c1_1.jpg")
    assert [row[1:] for row in records("market", tmp_path)] == [
        ("gallery", "junk", 0),
        ("gallery", "distractor", 1),
        ("gallery", 1, 1),
        ("train", 0, 0),
        ("query", 1, 0),
    ]
    assert scan_dataset("market", tmp_path).notes == ()
    plant(tmp_path / "market", "query/0000_c0_1.jpg")  # who is asked for is no distractor
    assert [row[1:] for row in records("market", tmp_path)] == [
        ("gallery", "junk", 0),
        ("gallery", 0, 1),
        ("gallery", 1, 1),
        ("train", 0, 0),
        ("query", 0, 0),
        ("query", 1, 0),
    ]
    assert "1 query images show identity 0" in scan_dataset("market", tmp_path).notes[0]


def test_duke_names_without_a_sequence(tmp_path: Path) -> None:
    plant(tmp_path, "dukemtmc-reid/DukeMTMC-reID/query/0005_c2_f0046985.jpg")
    assert records("duke", tmp_path) == [("query/0005_c2_f0046985.jpg", "query", 5, 2)]
    assert locate("duke", tmp_path) == tmp_path / "dukemtmc-reid" / "DukeMTMC-reID"


def test_msmt17_lists_keep_train_and_test_people_apart(tmp_path: Path) -> None:
    root = tmp_path / "MSMT17_V1"
    names = {
        "train": ["0000/0000_000_01_0303morning_0015_0.jpg", "0001/0001_000_15_0303morning_0015_0.jpg"],
        "test": ["0000/0000_000_07_0303morning_0015_0.jpg", "0000/0000_001_02_0303noon_0015_0.jpg"],
    }
    plant(root, *(f"{folder}/{name}" for folder, found in names.items() for name in found), "train/0009/extra.jpg")
    (root / "list_train.txt").write_text(f"{names['train'][0]} 0\n")
    (root / "list_val.txt").write_text(f"{names['train'][1]} 1\n")
    (root / "list_query.txt").write_text(f"{names['test'][0]} 0\n")
    (root / "list_gallery.txt").write_text(f"{names['test'][1]} 0\n0002/0002_001_02_0303noon_0015_0.jpg 2\n")
    assert [(r.split, r.identity, r.camera) for r in scan_dataset("msmt17", root.parent).files] == [
        ("query", 3, 7),
        ("gallery", 3, 2),
        ("train", 1, 1),
        ("train", 2, 15),
    ]
    assert scan_dataset("msmt17", tmp_path).skipped == {
        NOT_LISTED: ["train/0009/extra.jpg"],
        NOT_THERE: ["test/0002/0002_001_02_0303noon_0015_0.jpg"],
    }
    odd = ["../../etc/pass_wd_1_1.jpg 0", "0000/0000_000_x_1.jpg 0", f"0000/0000_000_07_1.jpg {'9' * 5000}", "x"]
    (root / "list_query.txt").write_text("\n".join([*odd, f"{names['test'][0]} 0"]))
    scanned = scan_dataset("msmt17", tmp_path)
    assert scanned.skipped[DAMAGED_LINE] == ["list_query.txt:1", "list_query.txt:2", "list_query.txt:4"]
    assert scanned.skipped[OUT_OF_RANGE] == ["list_query.txt:3"] and len(scanned.files) == 4
    (root / "list_query.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        scan_dataset("msmt17", tmp_path)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("0000/0000_001_02_x.jpg 1", "identity 1, folder '0000' (0000/0000_001_02_x.jpg) is identity 0 in another"),
        ("0000/0000_000_01_x.jpg 1", "is identity 0 in another line"),  # the same image, listed as two people
        ("0001/0000_001_02_x.jpg 1", "identity 1, name '0000'"),
        ("0001/0001_001_02_x.jpg 0", "identity 0, folder '0001' (0001/0001_001_02_x.jpg) has folder '0000'"),
        ("0001_001_02_x.jpg 0", "identity 0, name '0001' (0001_001_02_x.jpg) has name '0000'"),
    ],
)
def test_msmt17_lists_that_contradict_the_folders_are_refused(lines: str, told: str, tmp_path: Path) -> None:
    root = tmp_path / "msmt17"
    for name in ("0000/0000_000_01_x.jpg", "0000/0000_001_02_x.jpg", "0001/0001_001_02_x.jpg"):
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "train" / name).touch()
    (root / "list_train.txt").write_text("0000/0000_000_01_x.jpg 0\n")
    (root / "list_val.txt").write_text(f"{lines}\n")
    with pytest.raises(DataError, match=r"list_val\.txt") as refused:
        scan_dataset("msmt17", tmp_path)
    assert told in refused.value.what


def test_msmt17_lists_may_number_people_anew_and_say_a_line_twice(tmp_path: Path) -> None:
    root = tmp_path / "msmt17"
    names = ["0000/0000_000_01_x.jpg", "0004/0004_000_02_x.jpg"]
    for name in names:
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "train" / name).touch()
    (root / "list_train.txt").write_text(f"{names[0]} 7\n{names[1]} 3\n{names[0]} 7\n")
    assert [(r.path, r.identity) for r in scan_dataset("msmt17", tmp_path).files] == [
        (f"train/{names[0]}", 8),
        (f"train/{names[1]}", 4),
    ]


def test_msmt17_in_market_names_loses_nobody_to_identity_zero(tmp_path: Path) -> None:
    plant(
        tmp_path / "MSMT17_V2",
        "bounding_box_train/0000_c1_0002.jpg",
        "bounding_box_train/0004_c1_0002.jpg",
        "query/0000_c2_0002.jpg",
        "bounding_box_test/0000_c14_0030.jpg",
    )
    assert [(r.split, r.identity, r.camera) for r in scan_dataset("msmt17_v2", tmp_path).files] == [
        ("gallery", 6, 14),
        ("train", 1, 1),
        ("train", 5, 1),
        ("query", 6, 2),
    ]


def test_viper_starts_at_one_and_takes_cameras_from_folders(tmp_path: Path) -> None:
    plant(tmp_path, "viper/cam_a/000_45.bmp", "viper/cam_b/000_0.bmp", "viper/cam_b/873_90.bmp")
    assert records("viper", tmp_path) == [
        ("cam_a/000_45.bmp", "query", 1, 1),
        ("cam_b/000_0.bmp", "gallery", 1, 2),
        ("cam_b/873_90.bmp", "gallery", 874, 2),
    ]


def test_prid_people_of_one_camera_are_distractors(tmp_path: Path) -> None:
    plant(
        tmp_path / "prid_2011" / "single_shot",
        *(f"cam_{side}/person_{person:04d}.png" for side in "ab" for person in (200, 201)),
    )
    plant(tmp_path / "prid_2011", "multi_shot/cam_a/person_0001/0001.png")
    assert [row[1:] for row in records("prid2011", tmp_path)] == [
        ("query", 200, 1),
        ("query", "distractor", 1),
        ("gallery", 200, 2),
        ("gallery", "distractor", 2),
    ]
    assert list(scan_dataset("prid", tmp_path).skipped) == [ELSEWHERE]


def test_grid_and_ilids(tmp_path: Path) -> None:
    plant(tmp_path, "underground_reid/probe/0001_1_25004_107_32_106_221.jpeg")
    plant(tmp_path, *(f"underground_reid/gallery/{who}_5_27193_70_128_99_268.jpeg" for who in ("0000", "0001")))
    plant(tmp_path, "i-LIDS/Persons/0119002.jpg")
    assert [row[1:] for row in records("grid", tmp_path)] == [
        ("gallery", "distractor", 5),
        ("gallery", 1, 5),
        ("query", 1, 1),
    ]
    assert records("i-lids", tmp_path) == [("Persons/0119002.jpg", "all", 119, None)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Market-1501-v15.09.15", "market1501"),
        ("MA", "market1501"),
        ("DukeMTMC-reID", "dukemtmc"),
        ("D", "dukemtmc"),
        ("MSMT17_V1", "msmt17"),
        ("MSMT17_V2", "msmt17_v2"),
        ("prid_2011", "prid"),
        ("underground_reid", "grid"),
        ("i-LIDS", "ilids"),
        ("CAVIAR4REID", "caviar"),
    ],
)
def test_people_write_names_as_they_like(text: str, name: str, tmp_path: Path) -> None:
    assert resolve_name(text, tmp_path) == name


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown data set 'markt'[\s\S]*market1501 \(market, ma\).*viper"):
        resolve_name("markt", tmp_path)


def test_not_found_says_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    plant(tmp_path, "VIPeR/cam_a/000_45.bmp")
    with pytest.raises(
        DataError, match=r"folder called market1501, market.*bounding_box_train.*there is VIPeR"
    ) as info:
        locate("market", tmp_path)
    assert str(tmp_path) in str(info.value)
    with pytest.raises(DataError, match="no such folder"):
        locate("market", tmp_path / "nowhere")


def test_a_half_unpacked_set_says_what_it_holds(tmp_path: Path) -> None:
    plant(tmp_path, "Market-1501/images/1.jpg")
    with pytest.raises(DataError, match=r"not complete: looked for \{bounding_box_train.*found images"):
        locate("market", tmp_path)


def test_two_copies_are_not_guessed_between(tmp_path: Path) -> None:
    plant(tmp_path, "Market-1501/query/0001_c1_1.jpg", "market1501/query/0001_c1_1.jpg")
    with pytest.raises(DataError, match="2 folders could be market1501"):
        locate("market", tmp_path)


def test_a_set_without_images_is_an_error_that_counts_what_is_there(tmp_path: Path) -> None:
    plant(tmp_path, "VIPeR/cam_a/front.bmp")
    with pytest.raises(DataError, match=r"no image of viper.*1 x file name that does not fit the layout.*front"):
        scan_dataset("viper", tmp_path)
    (tmp_path / "GRID" / "probe").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no files"):
        scan_dataset("grid", tmp_path)


def test_links_that_go_round_are_walked_once(tmp_path: Path) -> None:
    plant(tmp_path, "a/b/1.jpg")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    assert walk_files(tmp_path).files == ["a/b/1.jpg"]


@pytest.mark.parametrize(
    ("words", "kinds", "expected"),
    [
        (["b", "a", "-1", "0", "b"], {"-1": Kind.JUNK}, {"-1": "junk", "0": 1, "a": 2, "b": 3}),
        (["0007", "12", "-1", "0000", "-2"], {}, {"0007": 7, "12": 12, "-1": -1, "0000": 0, "-2": -2}),
        (
            ["0007", "-1", "-01", "0000", "?"],
            {"-1": Kind.JUNK, "0": Kind.DISTRACTOR, "?": Kind.DISTRACTOR},
            {"0007": 7, "-1": "junk", "-01": "junk", "0000": "distractor", "?": "distractor"},
        ),
        (
            ["-1.0", "0.0", "3.0", "4,0", "5,"],
            {"-1": Kind.JUNK},
            {"-1.0": "junk", "0.0": 0, "3.0": 3, "4,0": 4, "5,": 5},
        ),
        (["-1", "2"], {"-1.0": Kind.JUNK}, {"-1": "junk", "2": 2}),
        (["0001", "00-1", "0002"], {"-1": Kind.JUNK}, {"0001": 1, "00-1": "junk", "0002": 2}),  # MARS
        (["00-1", "01-1", "2"], {"-1": Kind.JUNK}, {"2": 1, "00-1": 2, "01-1": 3}),  # sequence and person
        (
            ["1.000", "1", "0.000", "1234.000", "5.000000"],
            {},
            {"0.000": 1, "1": 2, "5.000000": 3, "1234.000": 4, "1.000": 5},
        ),
        (["3.5", "12", "2"], {}, {"2": 1, "12": 2, "3.5": 3}),
        (["1", "9" * 25, "9" * 5000], {}, {"1": 1, "9" * 25: 2, "9" * 5000: 3}),
        ([str(2**63 - 1), "-1"], {}, {str(2**63 - 1): 2**63 - 1, "-1": -1}),
        (["J\u00fcrgen", "Ju\u0308rgen", "Ann"], {}, {"Ann": 1, "J\u00fcrgen": 2, "Ju\u0308rgen": 2}),
        (["\u0663", "3"], {}, {"3": 1, "\u0663": 2}),
    ],
)
def test_identities_do_not_depend_on_order_and_whole_numbers_are_kept(
    words: list[str], kinds: dict[str, Kind], expected: dict[str, int | str]
) -> None:
    for order in (words, words[::-1]):
        found = number_identities(order, kinds).of
        assert {word: str(kind) if who is None else who for word, (who, kind) in found.items()} == expected


def cameras(words: list[str]) -> dict[str, int | None]:
    return {word: number for word, (number, _) in number_cameras(words).of.items()}


def test_cameras_keep_whole_numbers_and_empty_is_not_labelled() -> None:
    assert cameras(["", "3", "1"]) == {"": None, "3": 3, "1": 1}
    assert cameras(["0", "10", "-2"]) == {"0": 0, "-2": -2, "10": 10}
    assert cameras(["b", "a", "0"]) == {"0": 1, "a": 2, "b": 3}
    assert cameras(["1", str(2**31)]) == {"1": 1, str(2**31): 2}  # a word beyond 32 bits is numbered, and said
    assert "32 bits" in number_cameras(["1", str(2**31)]).note


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets are not on this machine (REID_SHARED)")
@pytest.mark.parametrize(
    ("name", "images", "people", "cameras"),
    [
        ("viper", {"query": 632, "gallery": 632}, 632, 2),
        ("grid", {"query": 250, "gallery": 1025}, 250, 6),
        ("prid", {"query": 385, "gallery": 749}, 200, 2),
        ("ilids", {"all": 476}, 119, 0),
        ("caviar", {"train": 720, "query": 50, "gallery": 450}, 47 + 25, 2),
        ("3dpes", {"train": 489, "query": 90, "gallery": 433}, 103 + 90, 12),
        ("towncentre", {"train": 6967}, 222, 1),
    ],
)
def test_real_sets_hold_what_their_papers_say(name: str, images: dict[str, int], people: int, cameras: int) -> None:
    scanned = scan_dataset(name, REAL)
    assert Counter(record.split for record in scanned.files) == images
    assert len({record.identity for record in scanned.files} - {None}) == people
    assert len({record.camera for record in scanned.files} - {None}) == cameras
    assert scanned.skipped == {}
    assert known_datasets(REAL)[name].cameras_known == (cameras > 0)
