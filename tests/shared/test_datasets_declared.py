"""Data sets that a dataset.yaml declares: patterns, tables, public layouts under another name."""

from pathlib import Path

import pytest
from PIL import Image

from shared.datasets import known_datasets, locate, resolve_name, scan_dataset
from shared.datasets.records import ELSEWHERE, FOREIGN_NAME, NOT_AN_IMAGE, NOT_LISTED, NOT_THERE
from shared.errors import ConfigError, DataError


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
        [("-1", "0", "gallery"), ("0", "-1", "train"), ("00", "", "gallery"), ("-7", "3", "query")]
    )
)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("", ["junk", 0, 0, -7]),
        ("junk: []\n", [-1, 0, 0, -7]),
        ("distractors: [0]\n", ["junk", "distractor", "distractor", -7]),
        ('junk: ["-7", -1]\ndistractors: [0]\n', ["junk", "distractor", "distractor", "junk"]),
    ],
)
def test_a_table_says_which_identities_are_nobodys(declared: str, expected: list[int | str], tmp_path: Path) -> None:
    root = declare(tmp_path / "t", f"layout: csv\ncsv: i.csv\n{declared}", *(f"{number}.jpg" for number in range(4)))
    (root / "i.csv").write_text(TABLE)
    assert [(who, camera) for _, _, who, camera in records("t", tmp_path)] == list(
        zip(expected, [0, -1, None, 3], strict=True)
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
        ("path,identity,split\n/etc/passwd,1,train\n", "leaves the data set's folder"),
        ("path,identity,split\na/../../b.jpg,1,train\n", "leaves the data set's folder"),
        ("path,identity,split\nC:\\b.jpg,1,train\n", "leaves the data set's folder"),
        ("path,identity,split\n1.jpg,1,test\n", "unknown split 'test'.*images.csv:2"),
        ("path,identity,split\n1.jpg,,train\n", "nothing in column identity"),
        ("path,identity,split\n1.jpg,1,train,9\n", "more fields"),
        ("path,identity\n1.jpg,1\n", r"missing columns \['split'\]"),
        ("path,identity,split,cam\n1.jpg,1,train,2\n", r"unknown columns \['cam'\]"),
        ("path,identity,split\n1.jpg,1,train\n1.jpg,2,train\n", "listed twice"),
    ],
)
def test_tables_are_refused_with_the_reason(table: str, told: str, tmp_path: Path) -> None:
    root = declare(tmp_path / "t", "layout: csv\ncsv: images.csv\n", "1.jpg")
    (root / "images.csv").write_text(table)
    with pytest.raises(DataError, match=told):
        scan_dataset("t", tmp_path)


def test_a_table_that_is_missing_or_no_text(tmp_path: Path) -> None:
    root = declare(tmp_path / "t", "layout: csv\ncsv: images.csv\n")
    with pytest.raises(DataError, match="not there"):
        scan_dataset("t", tmp_path)
    (root / "images.csv").write_bytes(b"path,identity,split\n\xff,1,train\n")
    with pytest.raises(DataError, match="UTF-8"):
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
        ("title: x\n", "layout: Field required"),
        ("- a\n", "not a YAML mapping"),
        ("layout: [\n", "not readable as YAML"),
        ("layout: !!python/object/apply:os.getcwd []\n", "not readable as YAML"),
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
    with pytest.raises(DataError, match=told) as info:
        known_datasets(tmp_path)
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


def test_two_sets_cannot_share_a_name(tmp_path: Path) -> None:
    declare(tmp_path / "a", "layout: market1501\naliases: [market]\n")
    with pytest.raises(ConfigError, match="two data sets are called 'market'"):
        known_datasets(tmp_path)
    declare(tmp_path / "a", "layout: market1501\nname: viper\n")
    with pytest.raises(ConfigError, match=r"called 'viper'.*built-in VIPeR"):
        known_datasets(tmp_path)


def test_a_folder_name_that_cannot_name_a_data_set_needs_one(tmp_path: Path) -> None:
    declare(tmp_path / "my data", "layout: market1501\n")
    with pytest.raises(DataError, match="cannot name a data set"):
        known_datasets(tmp_path)
    declare(tmp_path / "my data", "layout: market1501\nname: Mine\n")
    assert known_datasets(tmp_path)["mine"].folder == tmp_path / "my data"
