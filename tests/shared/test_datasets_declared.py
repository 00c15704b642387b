"""Data sets that a dataset.yaml declares: patterns, tables, public layouts under another name."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

import shared.datasets.description
import shared.datasets.layouts
from shared.datasets import known_datasets, locate, resolve_name, scan_dataset
from shared.datasets.csv_table import LEAVES, NO_IDENTITY, UNCLEAR
from shared.datasets.description import Description, LayoutName
from shared.datasets.layouts import LAYOUTS
from shared.datasets.pattern import AMBIGUOUS, match_name, parse_pattern
from shared.datasets.records import (
    ELSEWHERE,
    FOREIGN_NAME,
    LINKED_FOLDER,
    NOT_AN_IMAGE,
    NOT_LISTED,
    NOT_THERE,
    NOT_UTF8,
    OUT_OF_RANGE,
    UNREADABLE_FOLDER,
    number_identities,
)
from shared.errors import ConfigError, DataError
from shared.schemas import Kind


def declare(root: Path, text: str, *paths: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.yaml").write_text(text)
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 4)).save(root / path)
    return root


def records(name: str, root: Path) -> list[tuple[str, str, int | str, int | None]]:
    """A kind stands in the place of an identity that there is not."""
    return [
        (r.path, r.split, str(r.kind) if r.identity is None else r.identity, r.camera)
        for r in scan_dataset(name, root).files
    ]


def test_a_pattern_with_words_as_identities(tmp_path: Path) -> None:
    declare(
        tmp_path / "mine",
        'layout: pattern\npattern: "{identity}_c{camera}_{*}.jpg"\nsplit: train\n',
        "bo_c2_x.jpg",
        "al_c1_y.jpg",
        "al_c1_.jpg",
        "al.jpg",
    )
    assert records("mine", tmp_path) == [
        ("al_c1_.jpg", "train", 1, 1),
        ("al_c1_y.jpg", "train", 1, 1),
        ("bo_c2_x.jpg", "train", 2, 2),
    ]
    assert scan_dataset("mine", tmp_path).skipped == {FOREIGN_NAME: ["al.jpg"]}


def test_a_pattern_per_split_folder_without_cameras(tmp_path: Path) -> None:
    declare(
        tmp_path / "Shop",
        'layout: pattern\npattern: "{identity}/{*}.png"\naliases: [sh]\n'
        "splits: {probe: query, probe/all: gallery, tr: train}\n",
        "probe/7/a.png",
        "probe/all/0/b.png",
        "tr/12/c.png",
        "other/1/d.png",
    )
    assert records("SH", tmp_path) == [
        ("probe/7/a.png", "query", 7, None),
        ("probe/all/0/b.png", "gallery", 0, None),
        ("tr/12/c.png", "train", 12, None),
    ]
    assert scan_dataset("shop", tmp_path).skipped == {ELSEWHERE: ["other/1/d.png"]}


def test_special_characters_of_a_pattern_mean_themselves(tmp_path: Path) -> None:
    declare(tmp_path / "m", 'layout: pattern\npattern: "p({identity}).{*}"\n', "p(3).jpg", "p3x.jpg")
    assert records("m", tmp_path) == [("p(3).jpg", "all", 3, None)]


def test_a_table_with_and_without_cameras(tmp_path: Path) -> None:
    root = declare(tmp_path / "t", "layout: csv\ncsv: images.csv\n", "x/1.jpg", "x/2.jpg", "x/3.jpg", "x/4.jpg")
    (root / "note.txt").write_text("n")
    (root / "images.csv").write_text(
        "path,identity,camera,split\nx/1.jpg,ann,5,query\nx/2.jpg,ann,,gallery\nx/3.jpg,-1,2,gallery\ngone.jpg,bob,1,train\n"
    )
    assert records("t", tmp_path) == [
        ("x/1.jpg", "query", 1, 5),
        ("x/2.jpg", "gallery", 1, None),
        ("x/3.jpg", "gallery", "junk", 2),
    ]
    assert scan_dataset("t", tmp_path).skipped == {
        NOT_THERE: ["gone.jpg"],
        NOT_LISTED: ["x/4.jpg"],
        NOT_AN_IMAGE: ["note.txt"],
    }
    (root / "images.csv").write_text("\ufeffidentity,path,split\n4,x/1.jpg,all\n", encoding="utf-8")
    assert records("t", tmp_path) == [("x/1.jpg", "all", 4, None)]


TABLE = "path,identity,camera,split\n" + "".join(
    f"{number}.jpg,{who},{camera},{split}\n"
    for number, (who, camera, split) in enumerate(
        [("-1", "0", "all"), ("0", "-1", "all"), ("00", "", "all"), ("-7", "3", "all"), ("8", "3", "all")]
    )
)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("", ["junk", 0, 0, -7, 8]),
        ("junk: []\n", [-1, 0, 0, -7, 8]),
        ("distractors: [0]\n", ["junk", "distractor", "distractor", -7, 8]),
        ('junk: ["-7", -1]\ndistractors: [0]\n', ["junk", "distractor", "distractor", "junk", 8]),
    ],
)
def test_a_table_says_which_identities_are_nobodys(declared: str, expected: list[int | str], tmp_path: Path) -> None:
    root = declare(tmp_path / "t", f"layout: csv\ncsv: i.csv\n{declared}", *(f"{number}.jpg" for number in range(5)))
    (root / "i.csv").write_text(TABLE)
    assert [(who, camera) for _, _, who, camera in records("t", tmp_path)] == list(
        zip(expected, [0, -1, None, 3, 3], strict=True)
    )


def test_a_pattern_says_which_identities_are_nobodys(tmp_path: Path) -> None:
    text = 'layout: pattern\npattern: "{identity}_c{camera}.jpg"\nsplit: train\n'
    declare(tmp_path / "p", text, "0_c0.jpg", "-1_c0.jpg", "5_c1.jpg")
    assert [row[2:] for row in records("p", tmp_path)] == [("junk", 0), (0, 0), (5, 1)]
    declare(tmp_path / "p", f"{text}junk: [5]\ndistractors: ['0']\n")
    assert [row[2:] for row in records("p", tmp_path)] == [(-1, 0), ("distractor", 0), ("junk", 1)]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("path,identity,split\n1.jpg,1,test\n", "unknown split 'test'.*images.csv:2"),
        ("path,identity,split\n,1,train\n", "nothing in column path"),
        ("path,identity,split,Identity \n1.jpg,1,train,1\n", r"columns given twice \['identity'\]"),
        ("path,identity,split\n1.jpg,1.23457E+11,train\n", "rounded by a spreadsheet.*images.csv:2"),
        ("path,identity,split\n1.jpg,7,train\n2.jpg,1e3,train\n", "identity '1e3' is a number .*images.csv:3"),
        ("path,identity,camera,split\n1.jpg,7,1,train\n2.jpg,7,2.5E-1,train\n", "camera '2.5E-1' is a number"),
        ('path,identity,split\n1.jpg,"1,000",train\n', r"identity '1,000' may be 1 or 1000 .*images.csv:2"),
        ("path,identity,split\n1.jpg,-1.000,train\n", r"identity '-1.000' may be -1 or -1000"),
        ('path,identity,split\n"1.jpg,1,train\n', "not a CSV file"),
        ("", "missing columns.*found nothing"),
        ("path,identity,split\n1.jpg,-1,train\n", "the train split of t shows no person: its 1 images"),
        ("path,identity,split\n1.jpg,1,train,9\n", "more fields"),
        ("path,identity\n1.jpg,1\n", r"missing columns \['split'\]"),
        ("path,identity,split,cam\n1.jpg,1,train,2\n", r"unknown columns \['cam'\]"),
        ("path,identity,split\n1.jpg,1,train\n1.jpg,2,train\n", "listed twice"),
    ],
)
def test_tables_are_refused_with_the_reason(table: str, told: str, tmp_path: Path) -> None:
    root = declare(tmp_path / "t", "layout: csv\ncsv: images.csv\n", "1.jpg", "2.jpg")
    (root / "images.csv").write_text(table)
    with pytest.raises(DataError, match=told):
        scan_dataset("t", tmp_path)


def test_a_number_that_a_floating_point_column_cannot_hold_is_refused(tmp_path: Path) -> None:
    text = "path,identity,split\na.jpg,9007199254740993.0,train\n"
    declare(tmp_path / "mine", "layout: csv\ncsv: images.csv\n", "a.jpg")
    (tmp_path / "mine" / "images.csv").write_text(text)
    with pytest.raises(DataError, match="was rounded by a spreadsheet"):
        scan_dataset("mine", tmp_path)
    (tmp_path / "mine" / "images.csv").write_text(text.replace(".0", ""))
    assert records("mine", tmp_path) == [("a.jpg", "train", 9007199254740993, None)]


def test_a_table_that_is_missing_or_no_text(tmp_path: Path) -> None:
    root = declare(tmp_path / "t", "layout: csv\ncsv: images.csv\n")
    with pytest.raises(DataError, match="not there"):
        scan_dataset("t", tmp_path)
    (root / "images.csv").write_bytes(b"path,identity,split\n\xff,1,train\n")
    with pytest.raises(DataError, match="neither UTF-8 nor UTF-16"):
        scan_dataset("t", tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("layout: market1501\ncolour: red\n", r"unknown keys colour.*[\s\S]*known keys: layout, name, title"),
        ("layout: market1501\njunk: [-1]\n", "`junk:` and `distractors:` belong to"),
        ("layout: csv\ncsv: a\njunk: [0]\ndistractors: ['0']\n", "0 cannot be junk and a distractor"),
        ("layout: csv\ncsv: a\njunk: -1\n", "junk: "),
        ("layout: csv\ncsv: a\njunk: [yes]\n", "junk.0: "),
        ("layout: imagenet\n", "layout: .*'market1501'"),
        ("pattern: x\n", "layout: Field required"),
        ("title: x\n", "no `layout:`, so it is not a description"),
        ("path: ../coco8\ntrain: images/train\nval: images/val\nnames: {0: person}\n", "keys: names, path, train, val"),
        ("a: &a [x, x]\nlayout: *a\n", r"alias \*a"),
        ("layout: csv\nlayout: market1501\n", "'layout' is given twice"),
        ("layout: csv\ncsv: a\njunk: [0x" + "f" * 9000 + "]\n", "dataset.yaml"),
        ("layout: csv\ncsv: a\njunk: [" + "9" * 9000 + "]\n", "dataset.yaml"),
        ("#" * 70_000, "larger than the limit"),
        ("? [a]\n: b\n", "dataset.yaml"),
        ("- a\n", "not a YAML mapping"),
        ("layout: [\n", "not YAML"),
        ("layout: !!python/object/apply:os.getcwd []\n", "not YAML"),
        ("layout: pattern\n", "`pattern:` and `layout: pattern` belong together"),
        ("layout: csv\ncsv: ../x.csv\n", "leaves the data set's folder"),
        ("layout: market1501\nsplit: train\n", "belong to `layout: pattern`"),
        ('layout: pattern\npattern: "{*}.jpg"\n', "needs {identity} once"),
        ('layout: pattern\npattern: "{identity}_{person}.jpg"\n', "unknown field {person}"),
        ('layout: pattern\npattern: "{identity}.jpg"\nsplit: test\n', "split: .*'train'"),
        ("layout: market1501\nname: a+b\n", "use letters"),
    ],
)
def test_descriptions_are_refused_with_the_reason(text: str, told: str, tmp_path: Path) -> None:
    root = declare(tmp_path / "mine", text)
    declare(tmp_path / "other", 'layout: pattern\npattern: "{identity}.jpg"\n', "5.jpg")
    with pytest.raises(DataError, match=told) as info:
        scan_dataset("mine", tmp_path)
    assert records("other", tmp_path) == [("5.jpg", "all", 5, None)]  # it blocks only itself
    assert known_datasets(tmp_path)["mine"].problem is not None
    assert str(root / "dataset.yaml") in str(info.value)


def test_generated_sets_say_which_layout_they_are(tmp_path: Path) -> None:
    text = "layout: market1501\ntitle: A plaza\nsynthetic: true\ngenerator: {seed: 3}\n"
    declare(tmp_path / "plaza", text, "query/0001_c2s1_000001_00.jpg")
    assert records("plaza", tmp_path) == [("query/0001_c2s1_000001_00.jpg", "query", 1, 2)]
    assert known_datasets(tmp_path)["plaza"].title == "A plaza"
    assert locate("plaza", tmp_path) == tmp_path / "plaza"


def test_a_built_in_set_may_come_in_another_form(tmp_path: Path) -> None:
    declare(tmp_path / "Market-1501", 'layout: pattern\npattern: "{identity}-{*}.jpg"\n', "5-a.jpg")
    assert resolve_name("market", tmp_path) == "market1501"
    assert records("market", tmp_path) == [("5-a.jpg", "all", 5, None)]


def test_two_sets_cannot_share_a_name_and_stop_no_other(tmp_path: Path) -> None:
    declare(tmp_path / "VIPeR", 'layout: pattern\npattern: "{identity}.jpg"\n', "5.jpg")
    declare(tmp_path / "a", "layout: market1501\naliases: [market]\n", "query/0001_c1_1.jpg")
    with pytest.raises(ConfigError, match="two data sets are called 'market'"):
        scan_dataset("a", tmp_path)
    assert resolve_name("market", tmp_path) == "market1501"
    assert records("viper", tmp_path) == [("5.jpg", "all", 5, None)]
    declare(tmp_path / "a", "layout: market1501\nname: viper\n")
    with pytest.raises(ConfigError, match=r"called 'viper'"):
        scan_dataset("viper", tmp_path)


def test_a_name_of_a_built_in_set_stays_its_own(tmp_path: Path) -> None:
    root = declare(tmp_path / "a", "layout: market1501\nname: viper\n", "query/0001_c1_1.jpg")
    assert resolve_name("viper", tmp_path) == "viper" and known_datasets(tmp_path)["viper"].folder is None
    with pytest.raises(ConfigError, match=r"called 'viper'.*built-in VIPeR"):
        resolve_name(str(root), tmp_path)


def test_two_declared_sets_of_one_name_are_not_guessed_between(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        declare(tmp_path / folder, "layout: market1501\nname: mine\n", "query/0001_c1_1.jpg")
    with pytest.raises(ConfigError, match=r"two data sets are called 'mine': .*a and .*b"):
        scan_dataset("mine", tmp_path)


@pytest.mark.parametrize(
    "folder", ["my data", "\u884c\u4eba", "???", "x" * 200, b"caf\xe9".decode(errors="surrogateescape")]
)
def test_a_folder_name_that_cannot_name_a_data_set_needs_one(folder: str, tmp_path: Path) -> None:
    declare(tmp_path / folder, 'layout: pattern\npattern: "{identity}.jpg"\n', "5.jpg")
    with pytest.raises(DataError, match="cannot name a data set"):
        resolve_name(folder, tmp_path)
    with pytest.raises(ConfigError, match=r"unknown data set 'markt'.*did you mean 'market'"):
        resolve_name("markt", tmp_path)
    declare(tmp_path / folder, 'layout: pattern\npattern: "{identity}.jpg"\nname: Mine\n')
    assert known_datasets(tmp_path)["mine"].folder == tmp_path / folder
    assert records("mine", tmp_path) == [("5.jpg", "all", 5, None)]


def test_a_foreign_description_in_the_folder_of_a_built_in_set_is_ignored_and_said(tmp_path: Path) -> None:
    declare(tmp_path / "Market-1501", "path: .\ntrain: bounding_box_train\nnc: 1\n", "query/0001_c1_1.jpg")
    assert records("market", tmp_path) == [("query/0001_c1_1.jpg", "query", 1, 1)]
    (note,) = scan_dataset("market", tmp_path).notes
    assert "dataset.yaml is ignored: no `layout:`" in note
    declare(tmp_path / "Market-1501", "layout: martket\n")  # meant for us: then nothing is guessed
    with pytest.raises(DataError, match="layout: Input should be"):
        scan_dataset("market", tmp_path)


def test_a_description_that_is_no_file_blocks_only_itself(tmp_path: Path) -> None:
    for name, make in {"pipe": os.mkfifo, "folder": os.mkdir}.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name / "dataset.yaml")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "dataset.yaml").symlink_to("dataset.yaml")
    for name, told in {"pipe": "a FIFO", "folder": "a folder", "loop": "symbolic links"}.items():
        with pytest.raises(DataError, match=f"cannot be read: .*{told}"):
            resolve_name(name, tmp_path)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Path]]:
    """Folders put in here cannot be listed; the tests may run as a user who can list everything."""
    folders: set[Path] = set()
    whole = os.scandir

    def scandir(path: object = ".") -> object:
        if Path(os.fspath(path)) in folders:  # type: ignore[call-overload]
            raise PermissionError(13, "Permission denied", os.fspath(path))  # type: ignore[call-overload]
        return whole(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    yield folders


def test_half_a_data_set_is_an_error(tmp_path: Path, closed: set[Path]) -> None:
    root = declare(
        tmp_path / "m", "layout: market1501\n", "query/0001_c1_1.jpg", "bounding_box_train/a/1.jpg", "other/1.jpg"
    )
    closed.add(root / "other")
    scanned = scan_dataset("m", tmp_path)
    assert scanned.skipped[UNREADABLE_FOLDER] == ["other"] and len(scanned.files) == 1
    closed.add(root / "bounding_box_train" / "a")
    with pytest.raises(DataError, match=r"1 folder of the data set .*bounding_box_train/a: Permission denied"):
        scan_dataset("m", tmp_path)
    declare(tmp_path / "p", 'layout: pattern\npattern: "{identity}/{*}.jpg"\n', "1/1.jpg", "2/1.jpg")
    closed.add(tmp_path / "p" / "2")
    with pytest.raises(DataError, match="cannot be read"):
        scan_dataset("p", tmp_path)


def test_a_closed_folder_under_the_data_root_blocks_only_itself(tmp_path: Path, closed: set[Path]) -> None:
    declare(tmp_path / "a", 'layout: pattern\npattern: "{identity}.jpg"\n', "5.jpg")
    declare(tmp_path / "Market-1501", "layout: market1501\n")
    closed.update({tmp_path / "Market-1501", tmp_path / "lost+found"})
    (tmp_path / "lost+found").mkdir()
    assert records("a", tmp_path) == [("5.jpg", "all", 5, None)]
    for name in ("market", "lost+found"):
        with pytest.raises(DataError, match="the folder cannot be read: Permission denied"):
            locate(name, tmp_path)
    closed.add(tmp_path)
    with pytest.raises(DataError, match=r"not found: looked for .*there is a folder that cannot be read \(Permission"):
        locate("viper", tmp_path)


def test_names_that_are_not_utf8_are_left_out_and_counted(tmp_path: Path) -> None:
    root = declare(tmp_path / "p", 'layout: pattern\npattern: "{identity}_{*}.jpg"\n', "5_a.jpg")
    odd = os.fsdecode(b"5_\xe9.jpg")
    (root / odd).touch()
    scanned = scan_dataset("p", tmp_path)
    assert [record.path for record in scanned.files] == ["5_a.jpg"] and scanned.skipped == {NOT_UTF8: [odd]}


def test_numbers_beyond_the_manifest_leave_out_only_their_image(tmp_path: Path) -> None:
    names = [f"query/{'9' * 20}_c1_1.jpg", f"query/0001_c{2**31}_1.jpg", f"query/{2**63 - 1}_c1_1.jpg"]
    declare(tmp_path / "m", "layout: market1501\n", *names)
    assert [row[2] for row in records("m", tmp_path)] == [2**63 - 1]
    assert scan_dataset("m", tmp_path).skipped == {OUT_OF_RANGE: sorted(names[:2])}
    declare(tmp_path / "m", "layout: market1501_zero_based\n", "query/0001_c1_1.jpg")
    assert [row[2] for row in records("m", tmp_path)] == [2]
    declare(tmp_path / "v", "layout: viper\n", f"cam_a/{2**63 - 1}_0.bmp", "cam_a/7_0.bmp")
    assert [row[2] for row in records("v", tmp_path)] == [8]


def test_renamed_people_and_cameras_keep_their_names_and_it_is_said(tmp_path: Path) -> None:
    text = 'layout: pattern\npattern: "{identity}@{camera}.jpg"\njunk: [nobody]\n'
    cameras = ("Kamera S\u00fcd-1", "Kamera Su\u0308d-2", "hall")
    declare(
        tmp_path / "p", text, *(f"{who}@{cam}.jpg" for who, cam in zip(("7", "nobody", "ann"), cameras, strict=True))
    )
    scanned = scan_dataset("p", tmp_path)
    assert [(r.identity, r.identity_name, r.camera, r.camera_name) for r in scanned.files] == [
        (1, "7", 1, "Kamera S\u00fcd-1"),
        (2, "ann", 3, "hall"),
        (None, "nobody", 2, "Kamera S\u00fcd-2"),
    ]
    people, cams = scanned.notes
    assert people.startswith("2 identities were numbered from 1, because 1 of these are not whole numbers of 64 bits")
    assert cams.startswith("3 cameras were numbered from 1, because they are words (e.g. 'Kamera")
    declare(tmp_path / "n", text, "0007@3.jpg")
    scanned = scan_dataset("n", tmp_path)
    assert scanned.notes == ("no image has the identity of junk or distractors 'nobody'",)
    assert {(r.identity_name, r.camera_name) for r in scanned.files} == {(None, None)}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("Anna", "anna", "bob"), "'Anna' and 'anna' count as different"),
        (("hall 1", "hall  1"), "'hall  1' and 'hall 1' count as different"),
        (("1,001", "1001"), "'1,001' and '1001' count as different"),
        (("0012", "'0012"), "\"'0012\" and '0012' count as different"),
        (("12", '="12"'), "count as different"),
        (("3", "\u0663"), "count as different"),
        (("\uff17", "7"), "count as different"),
        (("3-12", "12-Mar", "4-7"), "'12-Mar' looks like a date that a spreadsheet made"),
        (("3-12", "2026-12-03 00:00:00"), "'2026-12-03 00:00:00' looks like a date"),
        (("anna", "bob", "eva"), ""),
        (("2026-12-03", "2026-12-04"), ""),
        (("a1", "a2", "a10"), ""),
    ],
)
def test_words_that_may_be_one_person_are_said(words: tuple[str, ...], told: str) -> None:
    numbers = number_identities(words, {})
    assert len({number for number, _ in numbers.of.values()}) == len(words)  # never merged by guessing
    assert told in numbers.note and bool(told) == (";" in numbers.note.split("_name", 1)[1])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("1,-1 2,2", ["'-1' counts as a camera: use a table with an empty camera where it is not known"]),
        ("1,-1.0 2,2.0", ["'-1.0' counts as a camera"]),
        ("1,? 2,Unknown 3,2", ["'?' (and 1 more such words) counts as a camera"]),
        ("-2,1 2,1", ["'-2' counts as a person: list it under `junk:`"]),
        ("Junk,1 2,1", ["'Junk' counts as a person"]),
        ("0012,1 12,1 3,1", ["'0012' and '12' count as one person"]),
        ("1,c1 2,01 3,1", ["'01' and '1' count as one camera"]),
        ("-1,1 2,1 02,2", ["'02' and '2' count as one person"]),  # -1 is junk unless it is said otherwise
        ("0001,1 0012,1 10000,0", []),
        ("1.0,1 1,2 2,3", []),
        ("a-1,1 b-1,c-1", []),
    ],
)
@pytest.mark.parametrize("layout", ["csv", "pattern"])
def test_words_that_may_mean_nothing_or_be_one_are_said(
    rows: str, told: list[str], layout: str, tmp_path: Path
) -> None:
    if layout == "pattern":  # whose cameras have no dot
        rows, told = rows.replace(".0", ""), [part.replace(".0", "") for part in told]
    pairs = [row.split(",") for row in rows.split()]
    names = [f"{who}+{where}+x.png" if layout == "pattern" else f"{n}.png" for n, (who, where) in enumerate(pairs)]
    text = {
        "csv": "layout: csv\ncsv: images.csv\n",
        "pattern": 'layout: pattern\npattern: "{identity}+{camera}+x.png"\n',
    }[layout]
    root = declare(tmp_path / "mine", text, *names)
    lines = [f"{name},{who},{where},train" for name, (who, where) in zip(names, pairs, strict=True)]
    (root / "images.csv").write_text("\n".join(["path,identity,camera,split", *lines]) + "\n")
    doubts = [note for note in scan_dataset("mine", tmp_path).notes if " as a " in note or " as one " in note]
    assert len(doubts) == len(told)
    assert all(part in doubt for part, doubt in zip(told, doubts, strict=True))


@pytest.mark.parametrize(
    ("junk", "kind"),
    [("[0012]", Kind.JUNK), ("[12]", Kind.JUNK), ("['0012']", Kind.JUNK), ("[0o14, 014]", Kind.PERSON)],
)
def test_junk_is_written_in_decimal(tmp_path: Path, junk: str, kind: Kind) -> None:
    text = f'layout: pattern\npattern: "{{identity}}_{{*}}.jpg"\njunk: {junk}\n'
    declare(tmp_path / "p", text, "0012_a.jpg", "0013_a.jpg")
    scanned = scan_dataset("p", tmp_path)
    assert [record.kind for record in scanned.files] == [kind, Kind.PERSON]
    assert bool(scanned.notes) == (kind == Kind.PERSON)


@pytest.mark.parametrize(
    ("pattern", "name", "fields"),
    [
        ("{identity:4}{*}.png", "0001001.png", {"identity": "0001"}),
        ("{identity:4}C{camera:1}T{*}.jpg", "00-1C2T0003F004.jpg", {"identity": "00-1", "camera": "2"}),
        ("{identity:4}{camera:2}{*}", "0001c2x.png", {"identity": "0001", "camera": "c2"}),
        ("{identity}{camera:1}.png", "ann3.png", {"identity": "ann", "camera": "3"}),
        ("{*}{identity:3}.png", "x_007.png", {"identity": "007"}),
        ("{identity}_c{camera}_{*}.jpg", "john_cena_c1_x.jpg", {"identity": "john", "camera": "ena"}),
        ("{identity}_{*}.jpg", "0001_c1s1_000451_03.jpg", {"identity": "0001"}),
        ("{*}_{identity}.jpg", "a_b_c.jpg", {"identity": "c"}),
        ("{identity}_c{camera}.jpg", "john_cena_c1.jpg", {"identity": "john_cena", "camera": "1"}),
        ("{identity}.jpg", "a.jpg.jpg", {"identity": "a.jpg"}),
        ("{identity}_{camera}.jpg", "7_front-left.jpg", {"identity": "7", "camera": "front-left"}),
        ("{identity}_{camera}.jpg", "7_Kamera 1.jpg", {"identity": "7", "camera": "Kamera 1"}),
        ("{identity}/{camera}/{*}", "7/K\u00fcche/x.jpg", {"identity": "7", "camera": "K\u00fcche"}),
        ("\u00fc{identity}.jpg", "u\u03085.jpg", {"identity": "5"}),
        ("{identity}-{camera}.jpg", "a-b-c.jpg", AMBIGUOUS),
        ("{identity}_{*}.jpg", " _x.jpg", FOREIGN_NAME),
        ("{identity}_{*}.jpg", "a/b_x.jpg", FOREIGN_NAME),
        ("{identity:4}.jpg", "00001.jpg", FOREIGN_NAME),
    ],
)
def test_patterns_read_names(pattern: str, name: str, fields: dict[str, str] | str) -> None:
    assert parse_pattern(pattern).read(name) == fields


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("{identity}{*}", r"\{identity\} and \{\*\} touch"),
        ("{identity}{camera}.jpg", "touch"),
        ("{*}{identity}.jpg", "touch"),
        ("{identity}{camera:1}{*}", "touch"),
        ("{identity}{*}{*}", "touch"),
        ("{identity:0}.jpg", "no width"),
        ("{identity:x}.jpg", "no width"),
        ("{identity:}.jpg", "no width"),
        ("{identity:999999999999}.jpg", "no width"),
        ("{identity}_{identity}.jpg", "needs {identity} once"),
        ("{identity}_{.jpg", "a brace without its other"),
        ("{identity}" + "_" * 600, "more than 500 characters"),
    ],
)
def test_patterns_that_do_not_say_where_a_field_ends_are_refused(pattern: str, told: str, tmp_path: Path) -> None:
    declare(tmp_path / "p", f"layout: pattern\npattern: {json.dumps(pattern)}\n", "0001001.png")
    with pytest.raises(DataError, match=told):
        scan_dataset("p", tmp_path)


class Counting(str):
    """Counts the places at which a text is compared."""

    asked = 0

    def startswith(self, *given: object) -> bool:
        self.asked += 1
        return super().startswith(*given)  # type: ignore[arg-type]

    def find(self, *given: object) -> int:
        self.asked += 1
        return super().find(*given)  # type: ignore[arg-type]

    def rfind(self, *given: object) -> int:
        self.asked += 1
        return super().rfind(*given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["_" * 255, "a_" * 127, "_c" * 127, "a" * 255])
@pytest.mark.parametrize(
    "pattern", ["{*}_" * 60 + "{identity}!", "{identity}_c{camera}_{*}_{*}_{*}!", "{*}_{identity}_{*}_x"]
)
def test_no_name_makes_a_pattern_go_over_it_again_and_again(pattern: str, name: str) -> None:
    (pieces,) = parse_pattern(pattern).segments
    for longest in (False, True):
        counting = Counting(name)
        assert match_name(pieces, counting, longest=longest) is None
        assert counting.asked <= 3 * len(pieces) * (len(name) + 1)


def table(root: Path, content: str | bytes, *images: str) -> Path:
    declare(root / "t", "layout: csv\ncsv: images.csv\n", *images)
    (root / "t" / "images.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


PLAIN = "path,identity,camera,split\nx/1.jpg,3,5,query\nx/2.jpg,3,,gallery\nx/3.jpg,-1,2,gallery\n"
READ = [("x/1.jpg", "query", 3, 5), ("x/2.jpg", "gallery", 3, None), ("x/3.jpg", "gallery", "junk", 2)]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        b"\xfe\xff" + PLAIN.replace(",", "\t").encode("utf-16-be"),
        PLAIN.encode("utf-32"),
        "sep=;\r\n" + PLAIN.replace(",", ";"),
        PLAIN + "\n\n,,,\n   ,,,\n",
        PLAIN.replace("path,identity,camera,split", 'Path, identity ,CAMERA,"Split"'),
        "".join(f"{line},,\n" for line in PLAIN.splitlines()),
        "".join(f"{at - 1 if at else ''},{line}\n" for at, line in enumerate(PLAIN.splitlines())),
        PLAIN.replace("3,5", "3.0,5.0").replace("-1,2", "-1.0,2.0").replace("3,,", "3.0,nan,"),
        PLAIN.replace(",", ";").replace("3;5", '"3,0";5,0').replace("-1;2", "-1,00;2,0"),
        PLAIN.replace("x/", "./x/"),
        PLAIN.replace("x/", "x\\"),
        PLAIN.replace("x/", ".\\x\\\\"),
        PLAIN.replace("query", "Query "),
        PLAIN + PLAIN.split("\n", 1)[1],
    ],
)
def test_tables_as_spreadsheets_and_other_systems_write_them(content: str | bytes, tmp_path: Path) -> None:
    table(tmp_path, content, "x/1.jpg", "x/2.jpg", "x/3.jpg")
    assert records("t", tmp_path) == READ
    assert scan_dataset("t", tmp_path).skipped == {}


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "shift_jis", "cp1251", "utf-16-le"])
def test_a_table_in_another_encoding_is_read_where_that_is_said(encoding: str, tmp_path: Path) -> None:
    person, camera = {"shift_jis": ("花子", "入口"), "cp1251": ("Анна", "вход")}.get(encoding, ("Jürgen", "Süd"))
    text = f"path,identity,camera,split\n1.jpg,{person},{camera},all\n"
    root = declare(tmp_path / "t", "layout: csv\ncsv: images.csv\n", "1.jpg")
    (root / "images.csv").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"neither UTF-8 nor UTF-16|UTF-16 without its mark") as refused:
        scan_dataset("t", tmp_path)
    assert "encoding: " in refused.value.fix
    (root / "dataset.yaml").write_text(f"layout: csv\ncsv: images.csv\nencoding: {encoding}\n")
    (image,) = scan_dataset("t", tmp_path).files
    assert (image.identity_name, image.camera_name) == (person, camera)


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ("layout: csv\ncsv: images.csv\nencoding: no-such\n", "names a text encoding"),
        ("layout: csv\ncsv: images.csv\nencoding: hex\n", "names a text encoding"),
        ("layout: csv\ncsv: images.csv\nencoding: ascii\n", r"the table is not ascii \(byte"),
        ("layout: market1501\nencoding: cp1252\n", "belongs to `layout: csv`"),
    ],
)
def test_an_encoding_that_does_not_fit_is_refused(declared: str, told: str, tmp_path: Path) -> None:
    root = declare(tmp_path / "t", declared, "1.jpg")
    (root / "images.csv").write_text("path,identity,split\n1.jpg,Jürgen,all\n", encoding="utf-8")
    with pytest.raises(DataError, match=told):
        scan_dataset("t", tmp_path)


@pytest.mark.parametrize(
    ("words", "people"),
    [
        (["7", "+7", "007", " 7 ", "7.0", "-1", "\N{MINUS SIGN}1", "-1.0"], [7, 7, 7, 7, 7, "junk", "junk", "junk"]),
        (["7", "07", "7.0", "1e3", "1_000", "ann"], [1, 1, 1, 3, 2, 4]),  # one person is not split by a word
        (["none", "Null", "1.#QNAN", "#NV", "4", "0", "-0"], [4, 0, 0]),
    ],
)
def test_one_person_is_written_in_many_ways(words: list[str], people: list[int | str], tmp_path: Path) -> None:
    names = [f"{place}.jpg" for place in range(len(words))]
    lines = [f"{name},{word},all\n" for name, word in zip(names, words, strict=True)]
    table(tmp_path, "path,identity,split\n" + "".join(lines), *names)
    assert [row[2] for row in records("t", tmp_path)] == people


def test_a_folder_that_two_links_show_is_said(tmp_path: Path) -> None:
    text = 'layout: pattern\npattern: "{identity}.jpg"\nsplits: {probe: query, gallery: gallery}\n'
    root = declare(tmp_path / "p", text, "real/5.jpg", "up/6.jpg")
    for name in ("gallery", "probe"):
        (root / name).symlink_to("real")
    (root / "up" / "back").symlink_to("..")
    scanned = scan_dataset("p", tmp_path)
    assert scanned.skipped[LINKED_FOLDER] == ["probe", "real"]
    assert [(one.path, one.split) for one in scanned.files] == [("gallery/5.jpg", "gallery")]


def test_paths_are_found_in_either_spelling_and_kept_as_on_disk(tmp_path: Path) -> None:
    one, other = "S\u00fcd/1.jpg", "Su\u0308d/2.jpg"
    text = "path,identity,split\nSu\u0308d/1.jpg,1,all\nS\u00fcd/2.jpg,2,all\n"
    table(tmp_path, text, one, other)
    assert {row[0] for row in records("t", tmp_path)} == {one, other}
    table(tmp_path, "path,identity,split\nSu\u0308d/1.jpg,1,all\nS\u00fcd/1.jpg,2,all\n", "Su\u0308d/1.jpg")
    assert [row[2] for row in records("t", tmp_path)] == [1, 2]  # both are there
    windows = "path,identity,split\n.\\S\u00fcd\\1.jpg,1,all\nSu\u0308d//\u0065\u0301.jpg,2,all\n"
    table(tmp_path, windows, "Su\u0308d/\u00e9.jpg", "S\u00fcd/\u00e9.jpg")
    assert scan_dataset("t", tmp_path).skipped[UNCLEAR] == ["Su\u0308d//\u0065\u0301.jpg"]


def test_paths_that_lead_into_the_folder_are_its_files_however_they_are_written(tmp_path: Path) -> None:
    real, root = tmp_path / "real", tmp_path / "data"
    real.mkdir()
    root.symlink_to(real)
    images = [f"x/{n}.jpg" for n in range(9)]
    lines = {
        f"{root}/t/x/0.jpg": "x/0.jpg",
        f"{real}/t/x/1.jpg": "x/1.jpg",
        f"{root}/t/../t//x/./2.jpg": "x/2.jpg",
        "../t/x/3.jpg": "x/3.jpg",
        "x/../x/4.jpg": "x/4.jpg",
        "not/there/../../x/5.jpg": "x/5.jpg",
        f"{tmp_path}/link/x/6.jpg": "x/6.jpg",
        "..\\t\\x\\7.jpg": "x/7.jpg",
        f"{root}/other/../t/x/linked.jpg": "x/linked.jpg",
    }
    out = [
        "../x/0.jpg",
        "../../t/x/0.jpg",
        f"{root}/t2/x/0.jpg",
        f"{root}/t/../0.jpg",
        "x/../../x/1.jpg",
        "/",
        "..",
        f"{root}/t",
    ]
    (tmp_path / "link").symlink_to(real / "t")
    (tmp_path / "elsewhere.jpg").write_bytes(b"")
    text = "path,identity,split\n" + "".join(f"{path},{n},all\n" for n, path in enumerate([*lines, *out]))
    table(root, text, *images)
    (real / "t" / "x" / "linked.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (real / "other").mkdir()
    assert {row[0] for row in records("t", root)} == set(lines.values())
    skipped = scan_dataset("t", root).skipped
    assert sorted(skipped[LEAVES] + skipped.get(NOT_THERE, [])) == sorted(out)


def test_a_backslash_may_be_part_of_a_name(tmp_path: Path) -> None:
    table(tmp_path, "path,identity,split\nx\\1.jpg,1,all\n", "x\\1.jpg", "x/1.jpg")
    assert records("t", tmp_path) == [("x\\1.jpg", "all", 1, None)]


def test_lines_that_cannot_be_used_block_only_themselves(tmp_path: Path) -> None:
    outside = ["/etc/passwd", "a/../../b.jpg", "C:\\data\\b.jpg", "\\\\server\\b.jpg"]
    lines = [
        *(f"{path},1,train" for path in outside),
        "1.jpg,7,train",
        "2.jpg,,train",
        "3.jpg,NaN,train",
        "4.jpg,1,all",
    ]
    table(tmp_path, "path,identity,split\n" + "\n".join(lines), "1.jpg", "2.jpg", "3.jpg")
    assert records("t", tmp_path) == [("1.jpg", "train", 7, None)]
    assert scan_dataset("t", tmp_path).skipped == {
        LEAVES: sorted(outside),
        NO_IDENTITY: ["2.jpg", "3.jpg"],
        NOT_THERE: ["4.jpg"],
    }


def test_a_table_that_never_ends_or_is_no_file(tmp_path: Path) -> None:
    root = table(tmp_path, "", "1.jpg") / "t"
    with (root / "images.csv").open("wb") as file:
        file.truncate(40 * 2**30)
    with pytest.raises(DataError, match="larger than the limit of 256 MiB"):
        scan_dataset("t", tmp_path)
    (root / "images.csv").unlink()
    os.mkfifo(root / "images.csv")
    with pytest.raises(DataError, match="a FIFO, not a regular file"):
        scan_dataset("t", tmp_path)
    (root / "images.csv").unlink()
    (root / "images.csv").write_bytes(PLAIN.encode("utf-16-le"))
    with pytest.raises(DataError, match="UTF-16 without its mark"):
        scan_dataset("t", tmp_path)


def test_an_identity_called_like_nothing_counts_where_it_is_declared(tmp_path: Path) -> None:
    root = table(tmp_path, "path,identity,split\n1.jpg,nan,all\n2.jpg,4,all\n", "1.jpg", "2.jpg")
    (root / "t" / "dataset.yaml").write_text("layout: csv\ncsv: images.csv\njunk: [.nan]\n")
    assert [row[2] for row in records("t", tmp_path)] == ["junk", 4]


def test_the_documented_keys_and_layouts_are_those_that_are_read() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", shared.datasets.description.__doc__ or "", re.MULTILINE)
    assert documented == list(Description.model_fields)
    assert {*get_args(LayoutName)} == {*LAYOUTS, "pattern", "csv"}
    assert re.findall(r"^\| (\w+) \| `", shared.datasets.layouts.__doc__ or "", re.MULTILINE) == [
        name for name in LAYOUTS if name != "market1501_zero_based"
    ]


@pytest.mark.parametrize(("word", "same"), [("anna\u200b", "anna"), ("\ufeff7", "007")])
def test_words_that_look_the_same_are_one_person_and_one_camera(tmp_path: Path, word: str, same: str) -> None:
    root = declare(tmp_path / "mine", "layout: csv\ncsv: t.csv\n", "a.jpg", "b.jpg")
    (root / "t.csv").write_text(
        f"path,identity,camera,split\na.jpg,{word},{word},all\nb.jpg,{same},{same},all\n", encoding="utf-8"
    )
    (one, other) = scan_dataset("mine", tmp_path).files
    assert (one.identity, one.camera) == (other.identity, other.camera)


def test_a_list_with_windows_separators_loses_no_image(tmp_path: Path) -> None:
    declare(tmp_path / "mine", "layout: msmt17\n", "train/0000/0000_000_01_x.jpg")
    (tmp_path / "mine" / "list_train.txt").write_bytes(b"0000\\0000_000_01_x.jpg 0\r\n")
    assert records("mine", tmp_path) == [("train/0000/0000_000_01_x.jpg", "train", 1, 1)]
