import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import shared.manifest
from shared.errors import DataError, DgreidError
from shared.labels import connect
from shared.manifest import build_manifest, read_manifest, summarise
from shared.schemas import ImageStatus, Kind, ManifestRow


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A Market-1501 tree: sizes differ, one image in two splits, three broken ones."""
    root = tmp_path / "data" / "Market-1501"
    for place, name in enumerate(
        [
            "bounding_box_train/0001_c1s1_000001_00.png",
            "bounding_box_train/0001_c2s1_000001_00.png",
            "query/0002_c1s1_000001_00.png",
            "bounding_box_test/0002_c2s1_000001_00.png",
            "bounding_box_test/0000_c2s1_000001_00.png",
            "bounding_box_test/-1_c2s1_000001_00.png",
        ]
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20 + place, 40), 60).convert("RGB").save(root / name)
    whole = (root / "query/0002_c1s1_000001_00.png").read_bytes()
    (root / "bounding_box_train/0001_c3s1_000001_00.png").write_bytes(
        (root / "bounding_box_train/0001_c1s1_000001_00.png").read_bytes()
    )
    (root / "bounding_box_test/0003_c1s1_000001_00.jpg").write_bytes(b"")
    (root / "bounding_box_test/0003_c2s1_000001_00.png").write_bytes(whole[: len(whole) // 2])
    (root / "bounding_box_test/0003_c3s1_000001_00.jpg").write_bytes(b"<html>not found</html>")
    return tmp_path / "data"


def test_rows_carry_hash_size_and_labels(data_root: Path, tmp_path: Path) -> None:
    rows = build_manifest("market", data_root, tmp_path / "m.parquet")
    assert rows == read_manifest(tmp_path / "m.parquet")
    assert [row.path for row in rows] == sorted(row.path for row in rows)
    for row in rows:
        file = data_root / "Market-1501" / row.path
        assert row.dataset == "market1501"
        if content := file.read_bytes():
            assert row.image_id == hashlib.sha256(content).hexdigest()[:16]
        assert (row.size_bytes, row.modified_ns) == (file.stat().st_size, file.stat().st_mtime_ns)
    found = {row.path: row for row in rows}["query/0002_c1s1_000001_00.png"]
    assert (found.width, found.height, found.identity, found.camera, found.split) == (22, 40, 2, 1, "query")


def test_files_without_content_do_not_share_an_id(data_root: Path, tmp_path: Path) -> None:
    empty = [f"bounding_box_test/0003_c{camera}s1_000009_00.jpg" for camera in (1, 2)]
    for path in empty:
        (data_root / "Market-1501" / path).write_bytes(b"")
    rows = {row.path: row for row in build_manifest("market", data_root, tmp_path / "m.parquet")}
    ids = [rows[path].image_id for path in empty]
    assert len(set(ids)) == 2
    assert all(len(name) == 16 and name.startswith("path:") for name in ids)  # no content has such an id
    again = {row.path: row for row in build_manifest("market", data_root, tmp_path / "m.parquet")}
    assert [again[path].image_id for path in empty] == ids


def test_broken_files_are_rows_with_a_reason(data_root: Path, tmp_path: Path) -> None:
    rows = build_manifest("market", data_root, tmp_path / "m.parquet")
    broken = {Path(row.path).name: row for row in rows if row.status == ImageStatus.UNREADABLE}
    assert sorted(broken) == [
        "0003_c1s1_000001_00.jpg",
        "0003_c2s1_000001_00.png",
        "0003_c3s1_000001_00.jpg",
    ]
    assert broken["0003_c1s1_000001_00.jpg"].reason == "the file is empty"
    assert all(row.reason and (row.width, row.height) == (0, 0) for row in broken.values())
    assert all(not row.reason and row.width for row in rows if row.status == ImageStatus.OK)


def test_the_summary_counts_what_a_user_asks_about(data_root: Path, tmp_path: Path) -> None:
    rows = build_manifest("market", data_root, tmp_path / "m.parquet")
    train, query, gallery = summarise(iter(rows))  # reads them once: a million are not held
    assert (train.split, train.images, train.identities, train.cameras, train.duplicates) == ("train", 3, 1, 3, 1)
    assert (query.split, query.images, query.duplicates) == ("query", 1, 0)
    assert (gallery.split, gallery.images, gallery.identities) == ("gallery", 6, 2)
    assert (gallery.distractors, gallery.junk, gallery.unreadable, gallery.duplicates) == (1, 1, 3, 0)


def test_only_changed_and_broken_files_are_read_again(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, root = tmp_path / "m.parquet", data_root / "Market-1501"
    before = build_manifest("market", data_root, out)
    read: list[str] = []
    whole = shared.manifest.read_file
    monkeypatch.setattr(shared.manifest, "read_file", lambda path: (read.append(path.name), whole(path))[1])
    assert build_manifest("market", data_root, out) == before
    assert sorted(read) == ["0003_c1s1_000001_00.jpg", "0003_c2s1_000001_00.png", "0003_c3s1_000001_00.jpg"]

    read.clear()
    mended = root / "bounding_box_test/0003_c1s1_000001_00.jpg"
    Image.new("RGB", (9, 9)).save(mended)
    touched = root / "query/0002_c1s1_000001_00.png"
    os.utime(touched, ns=(1, 1))
    (root / "bounding_box_train/0001_c2s1_000001_00.png").unlink()
    after = {row.path: row for row in build_manifest("market", data_root, out)}
    assert {mended.name, touched.name} <= set(read) and len(read) == 4
    assert after["bounding_box_test/0003_c1s1_000001_00.jpg"].width == 9
    assert len(after) == len(before) - 1


def test_a_damaged_manifest_is_replaced(data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    out.write_bytes(b"PAR1 no")
    assert build_manifest("market", data_root, out) == read_manifest(out)


def old_manifest(path: Path, rows: list[ManifestRow]) -> None:
    """As version 2 had it: 0 and -1 for what is no person, camera 0 for none."""
    numbers = {Kind.DISTRACTOR: 0, Kind.JUNK: -1}
    table = pa.Table.from_pylist(
        [
            row.model_dump(exclude={"kind"})
            | {"identity": numbers.get(row.kind, row.identity), "camera": row.camera or 0}
            for row in rows
        ]
    )
    pq.write_table(table.replace_schema_metadata({"dgreid.schema": "manifest", "dgreid.version": "2"}), path)


def test_a_manifest_of_the_old_numbers_is_refused_and_made_again(data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "market1501.parquet"
    rows = build_manifest("market", data_root, out)
    old_manifest(out, rows)
    for use in (read_manifest, lambda path: connect(manifests=[path])):
        with pytest.raises(DataError, match="written with schema 2; this version reads schema 3") as caught:
            use(out)
        assert caught.value.fix == "dgreid manifest market1501"
    assert build_manifest("market", data_root, out) == rows == read_manifest(out)


def test_a_manifest_without_the_columns_of_names_is_made_again(data_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "market1501.parquet"
    rows = build_manifest("market", data_root, out)
    pq.write_table(pq.read_table(out).drop_columns(["identity_name", "camera_name"]), out)
    with pytest.raises(DataError, match="columns are not those") as caught:
        read_manifest(out)
    assert caught.value.fix == "dgreid manifest market1501"
    assert build_manifest("market", data_root, out) == rows == read_manifest(out)


def test_names_behind_our_numbers_reach_sql_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "data" / "mine"
    root.mkdir(parents=True)
    (root / "dataset.yaml").write_text('layout: pattern\npattern: "{identity}_{camera}.png"\n')
    for name in ("J\u00fcrgen_3", "ann_3"):
        Image.new("RGB", (4, 8)).save(root / f"{name}.png")
    for _ in range(2):  # read, and known from the last scan
        build_manifest("mine", tmp_path / "data", tmp_path / "m.parquet")
        found = connect(manifests=[tmp_path / "m.parquet"]).execute(
            "select identity, identity_name, camera, camera_name from manifest order by all"
        )
        assert found.fetchall() == [(1, "J\u00fcrgen", 3, None), (2, "ann", 3, None)]
    assert "mine: 2 identities were numbered from 1, because they are words" in caplog.text


def test_files_that_block_or_never_end_are_rows(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "Market-1501" / "query"
    os.mkfifo(folder / "0002_c3s1_000001_00.jpg")
    (folder / "0002_c4s1_000001_00.jpg").symlink_to("/dev/zero")
    with (folder / "0002_c5s1_000001_00.jpg").open("wb") as file:
        file.truncate(40 * 2**30)
    (folder / "0002_c6s1_000001_00.jpg").symlink_to("nowhere")
    rows = [row for row in build_manifest("market", data_root, tmp_path / "m.parquet") if row.split == "query"]
    assert [(row.camera, row.reason) for row in sorted(rows, key=lambda row: row.camera or 0)] == [
        (1, ""),
        (3, "a FIFO, not a regular file"),
        (4, "a device, not a regular file"),
        (5, "larger than the limit of 256 MiB"),
        (6, "No such file or directory"),
    ]


def test_a_split_without_people_leaves_no_manifest(data_root: Path, tmp_path: Path) -> None:
    for name in (
        "0002_c2s1_000001_00.png",
        "0003_c1s1_000001_00.jpg",
        "0003_c2s1_000001_00.png",
        "0003_c3s1_000001_00.jpg",
    ):
        (data_root / "Market-1501" / "bounding_box_test" / name).unlink()
    with pytest.raises(DataError, match="the gallery split of market1501 shows no person: its 2 images are all"):
        build_manifest("market", data_root, tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()


def test_kinds_numbers_and_their_absence_reach_sql(data_root: Path, tmp_path: Path) -> None:
    root = data_root / "Market-1501"
    (root / "query/0002_c1s1_000001_00.png").rename(root / "query/0002_c0s1_000001_00.png")
    (root / "bounding_box_train/0001_c2s1_000001_00.png").rename(root / "bounding_box_train/0000_c0s1_000001_00.png")
    build_manifest("market", data_root, tmp_path / "m.parquet")
    found = connect(manifests=[tmp_path / "m.parquet"]).execute(
        "select kind, identity, camera from manifest where status = 'ok' order by all"
    )
    assert found.fetchall() == [
        ("distractor", None, 2),
        ("junk", None, 2),
        ("person", 0, 0),
        ("person", 1, 1),
        ("person", 1, 3),
        ("person", 2, 0),
        ("person", 2, 2),
    ]
    train, query, gallery = summarise(read_manifest(tmp_path / "m.parquet"))
    assert (train.identities, train.cameras, query.cameras) == (2, 3, 1)
    assert (gallery.identities, gallery.distractors, gallery.junk) == (2, 1, 1)


def test_files_left_out_are_told(data_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (data_root / "Market-1501" / "readme.txt").write_text("x")
    build_manifest("market", data_root, tmp_path / "m.parquet")
    assert "market1501: left out 1 x not an image file, e.g. readme.txt" in caplog.text


def test_an_empty_set_leaves_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "VIPeR" / "cam_a").mkdir(parents=True)
    with pytest.raises(DataError, match="no image of viper"):
        build_manifest("viper", tmp_path, tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()


def test_a_place_that_cannot_be_written_is_told(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DgreidError, match="cannot write"):
        build_manifest("market", data_root, tmp_path / "file" / "m.parquet")


_TWO_CAMERAS = "of different cameras: one is wrong"
_WITHOUT_CAMERA = "query and gallery without a camera"


@pytest.mark.parametrize(
    ("copies", "told"),
    [
        (("a_c1_0.png train", "a_c1_0 (1).png train"), "1 pair of files with the same bytes are of one identity and"),
        (("a_c1_0.png train", "a_c1_0 - Copy.png train", "a_c1_2.png train"), "2 pairs of files"),
        (("a_c1_0.png train", "b_c1_0.png train"), "of different identities: one is wrong"),
        (("a_c1_0.png query", "b_c1_0.png gallery"), "of different identities: one is wrong"),
        (("a_c1_0.png gallery", "a_c2_0.png gallery"), _TWO_CAMERAS),
        (("a_c1_0.png query", "a_c2_0.png gallery"), _TWO_CAMERAS),
        (("a_c1_0.png train", "a_c1_0.png gallery"), "training and test at once"),
        (("a__0.png query", "a__1.png gallery"), _WITHOUT_CAMERA),
        (("a_c1_0.png query", "a_c1_1.png gallery"), ""),  # removed before ranking
        (("a_c1_0.png train",), ""),
    ],
)
def test_files_of_one_content_are_told(
    copies: tuple[str, ...], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "mine"
    (root / "train").mkdir(parents=True)
    pictures = [Image.effect_noise((20, 40), 60).convert("RGB") for _ in range(3)]
    lines = ["path,identity,camera,split"]
    for place, split in enumerate(("train", "query", "gallery")):  # another image in each, so that none is empty
        (root / split).mkdir(exist_ok=True)
        pictures[place].save(root / split / "z_c9_0.png")
        lines.append(f"{split}/z_c9_0.png,z,9,{split}")
    one = Image.effect_noise((20, 40), 60).convert("RGB")
    for name, split in (copy.rsplit(" ", 1) for copy in copies):
        one.save(root / split / name)
        who, camera, _ = name.split("_")
        lines.append(f"{split}/{name},{who},{camera.removeprefix('c')},{split}")
    (root / "images.csv").write_text("\n".join(lines) + "\n")
    (root / "dataset.yaml").write_text("layout: csv\ncsv: images.csv\n")
    build_manifest("mine", tmp_path, tmp_path / "m.parquet")
    said = [record.message for record in caplog.records if "same bytes" in record.message]
    assert [told in sentence for sentence in said] == ([True] if told else [])
