"""The report of a small fabricated run: numbers, escaping, strips against a naive ranking, missing pieces."""

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.config import load_config
from reid.report.write import write_report
from reid.training.run_folder import open_run
from shared import labels as shards
from shared.errors import DataError
from shared.images import image_id_of
from shared.manifest import write_manifest
from shared.schemas import PARTS, Kind, LabelRow, LabelStatus, ManifestRow
from shared.workspace import Workspace

PEOPLE = 14
HOSTILE = "<script>alert(1)"
DETAILS = {
    "intervals": {"mean_ap": [38.24, 46.0], "rank_1": [50.0, 71.0]},
    "camera_pairs": [
        {"query_camera": 1, "gallery_camera": 2, "queries": 9, "mean_ap": 55.0, "rank_1": 60.0},
        {"query_camera": 2, "gallery_camera": 1, "queries": 5, "mean_ap": 33.33, "rank_1": 40.0},
    ],
    "parts": {"whole image": {"mean_ap": 41.0, "rank_1": 50.0}, "upper_body": {"mean_ap": 30.0, "rank_1": 31.0}},
    "ap_histogram": {"edges": [0, 50, 100], "queries": [3, 11]},
    "distance_histogram": {"edges": [0, 0.5, 1], "same": [0.75, 0.25], "other": [0.1, 0.9]},
}


def _person(path: Path, identity: int, camera: int) -> bytes:
    rng = np.random.default_rng([identity, camera])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (32, 16, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


def _row(root: Path, dataset: str, split: str, path: str, identity: int | None, camera: int) -> ManifestRow:
    content = _person(root / path, identity or 0, camera)
    return ManifestRow(
        dataset=dataset,
        split=split,
        path=path,
        image_id=image_id_of(content),
        width=16,
        height=32,
        kind=Kind.DISTRACTOR if identity is None else Kind.PERSON,
        identity=identity,
        camera=camera,
        size_bytes=len(content),
        modified_ns=0,
    )


def _label(row: ManifestRow, part: str, status: LabelStatus) -> LabelRow:
    box = {"x_min": 2.0, "y_min": 1.0, "x_max": 14.0, "y_max": 9.0} if status == LabelStatus.OK else {}
    return LabelRow(
        **row.model_dump(include={"dataset", "split", "path", "image_id", "width", "height"}),
        **box,
        label_run="first",
        part=part,
        status=status,
        score=0.5,
        space="original_pixels",
        engine="body_prior",
        model=HOSTILE,
        prompt_version="v1",
        attempts=1,
        created_at=datetime.now(UTC),
    )


SCORES = {"mean_ap": 41.25, "mean_inp": 30.5, "rank_1": 37.04, "rank_5": 61.0, "rank_10": 80.0}


@pytest.fixture
def target_rows(tmp_path: Path) -> list[ManifestRow]:
    """Market-1501 layout: every person in the query at camera 0, in the gallery at cameras 0 and 1, one distractor."""
    root = tmp_path / "data" / "CAVIAR4REID"
    rows = []
    for who in range(1, PEOPLE + 1):
        rows.append(_row(root, "caviar", "query", f"query/{who:04d}_c0s1_000001_00.jpg", who, 0))
        for camera in (0, 1):
            name = f"bounding_box_test/{who:04d}_c{camera}s1_000002_00.jpg"
            rows.append(_row(root, "caviar", "gallery", name, who, camera))
    rows.append(_row(root, "caviar", "gallery", "bounding_box_test/0000_c1s1_000003_00.jpg", None, 1))
    _row(root, "caviar", "train", "bounding_box_train/0099_c1s1_000001_00.jpg", 99, 1)
    return rows


@pytest.fixture
def workspace(tmp_path: Path, target_rows: list[ManifestRow]) -> Workspace:
    space = Workspace(tmp_path / "data", tmp_path / "runs")
    root = space.data_root / "3DPeS"
    for folder in ("query", "bounding_box_test"):
        _person(root / folder / "0099_c1s1_000001_00.jpg", 99, 1)
    rows = [
        _row(root, "3dpes", "train", f"bounding_box_train/{who:04d}_c1s1_{HOSTILE}.png", who, 1) for who in range(1, 9)
    ]
    write_manifest(rows, space.manifest("3dpes"))
    write_manifest(target_rows, space.manifest("caviar"))
    labels = [
        _label(row, part, LabelStatus.ABSENT if row.identity == 3 and part == "legs" else LabelStatus.OK)
        for row in rows
        for part in PARTS
    ]
    shards.write_label_shard(labels, shards.label_folder(space.labels, "first", "3dpes", "train"))
    return space


@pytest.fixture
def features(target_rows: list[ManifestRow]) -> np.ndarray:
    rng = np.random.default_rng(0)
    people = rng.normal(size=(PEOPLE + 1, 8))
    return np.array([people[row.identity or 0] + rng.normal(scale=0.9, size=8) for row in target_rows], np.float32)


@pytest.fixture
def run(workspace: Workspace, target_rows: list[ManifestRow], features: np.ndarray) -> Path:
    folder = workspace.training_runs / "a|b<b>"
    config = load_config("tiny", ["stage2.epochs=3"], protocol="3dpes2caviar")
    open_run(folder, config.model_dump(mode="json"))
    _write_json(
        folder / "training_set.json",
        {"sources": ["3dpes"], "label_run": "first", "images": 8, "identities": 8, "cameras": 1, "dropped": {"x": 2}},
    )
    _write_json(
        folder / "scores.json",
        {
            "protocol": f"3dpes -> caviar | {HOSTILE}",
            "scores": {"caviar": {"trained": SCORES, "untrained": dict.fromkeys(SCORES, 10.0)}},
            "details": {"caviar": {"trained": DETAILS}},
            "per_split": {"caviar": {"trained": [{"mean_ap": 40.0}, {"mean_ap": 44.0}]}},
            "seconds": {"stage1": 2.5},
        },
    )
    for stage, columns in (("stage1", "epoch,loss"), ("stage2", "epoch,loss,mask_iou")):
        lines = [",".join([str(epoch), "1.5", "0.4"][: columns.count(",") + 1]) for epoch in (1, 2, 3)]
        (folder / stage).mkdir()
        (folder / stage / "metrics.csv").write_text("\n".join([columns, *lines, "4,0.3,0.1,9", "5"]))
    paths = np.array([row.path for row in target_rows])
    for place in ("embeddings", "masks"):
        (folder / place).mkdir()
    ids = np.array([row.image_id for row in target_rows])
    for state, values in (("trained", features), ("untrained", features[::-1])):
        np.savez(folder / "embeddings" / f"caviar.{state}.npz", features=values, image_ids=ids, paths=paths)
    np.savez(folder / "masks" / "caviar.npz", paths=paths[:3], masks=np.ones((3, 3, 4, 2), bool))
    return folder


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


class _Page(HTMLParser):
    """Collects tags, and for every strip its captions."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_json_holds_the_scores_the_spread_the_paper_and_what_made_them(run: Path, workspace: Workspace) -> None:
    found = json.loads(write_report(run, workspace).json.read_text())
    assert found["scores"]["caviar"]["trained"] == SCORES
    assert found["protocol"].startswith("3dpes -> caviar")
    assert found["per_split"]["caviar"]["trained"]["mean"] == {"mean_ap": 42.0}
    assert found["per_split"]["caviar"]["trained"]["std"]["mean_ap"] == pytest.approx(8**0.5)
    assert found["paper"] == {"caviar": None}
    assert found["labels"]["made_by"] == [
        {"engine": "body_prior", "model": HOSTILE, "prompt_version": "v1", "rows": 8 * len(PARTS)}
    ]
    assert found["labels"]["statuses"]["legs"] == {"absent": 1, "ok": 7}
    assert found["reproduce"]["changed_settings"] == ["stage2.epochs=3"]
    assert "RUN='a|b<b>'" in found["reproduce"]["commands"][-1]
    assert found["missing"] == []


def test_markdown_numbers_are_the_json_numbers(run: Path, workspace: Workspace) -> None:
    paths = write_report(run, workspace)
    scores = json.loads(paths.json.read_text())["scores"]["caviar"]
    table = paths.markdown.read_text().split("## How sure")[0]
    lines = [line for line in table.splitlines() if line.startswith("| caviar |")]
    cells = {line.split(" | ")[1]: [cell.strip(" |") for cell in line.split(" | ")[2:]] for line in lines}
    order = ("mean_ap", "rank_1", "rank_5", "rank_10", "mean_inp")
    assert [float(cell.split()[0]) for cell in cells["trained"]] == [round(scores["trained"][n], 1) for n in order]
    assert cells["difference"] == [f"{scores['trained'][n] - scores['untrained'][n]:+.1f}" for n in order]
    assert "<script" not in paths.markdown.read_text() and "paper" not in cells


def test_the_page_is_one_file_without_script(run: Path, workspace: Workspace) -> None:
    text = write_report(run, workspace).html.read_text()
    page = _Page(text)
    assert not re.search(r"https?://|file://|@import", text)
    assert str(workspace.data_root) not in text
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    links = [attrs[name] or "" for _, attrs in page.tags for name in ("src", "href") if name in attrs]
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text))
    assert "&lt;script&gt;" in text  # the hostile names are shown, as text


def test_strips_are_the_naive_ranking(
    run: Path, workspace: Workspace, target_rows: list[ManifestRow], features: np.ndarray
) -> None:
    page = _Page(write_report(run, workspace).html.read_text())
    tiles = [attrs for tag, attrs in page.tags if tag == "figure" and (attrs.get("class") or "").startswith("tile")]
    place = {row.path: number for number, row in enumerate(target_rows)}
    labels = [attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert {label[-8:] for label in labels if label and label.startswith("rank ")} == {"camera 0", "camera 1"}
    starts = [number for number, label in enumerate(labels) if label == "query"]
    filled: list[int] = []  # parts drawn over each tile
    for tag, attrs in page.tags:
        if tag == "figure" and (attrs.get("class") or "").startswith("tile"):
            filled.append(0)
        elif tag == "path" and "fill-opacity" in attrs:
            filled[-1] += 1
    drawn: list[tuple[bool, int]] = []
    assert len(starts) == 3  # best, median, worst
    for start in starts:
        query = target_rows[place[tiles[start]["title"]]]
        naive = []
        for number, row in enumerate(target_rows):
            own_camera = row.identity == query.identity and row.camera == query.camera
            if row.split == "gallery" and not own_camera:
                naive.append((float(np.linalg.norm(features[number] - features[place[query.path]])), row))
        expected = [row for _, row in sorted(naive, key=lambda pair: pair[0])[:10]]
        shown = tiles[start + 1 : start + 11]
        assert [tile["title"] for tile in shown] == [row.path for row in expected]
        strip = slice(start, start + 11)
        drawn += [(place[t["title"] or ""] < 3, n) for t, n in zip(tiles[strip], filled[strip], strict=True)]
        verdicts = ["right" if row.identity == query.identity else "wrong" for row in expected]
        assert [tile["class"].split()[-1] for tile in shown] == verdicts
    assert set(drawn) == {(True, 3), (False, 0)}  # the masks of three images are there


def test_without_images_there_is_no_picture_and_no_path(run: Path, workspace: Workspace) -> None:
    text = write_report(run, workspace, images=False).html.read_text()
    assert "data:image" not in text and ".jpg" not in text and ".png" not in text
    assert "written without images" in text and "<svg" in text


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("embeddings/caviar.trained.npz", "embeddings of the trained model are not there"),
        ("stage1/metrics.csv", "No loss curve of stage 1"),
        ("masks/caviar.npz", "no predicted masks"),
        ("training_set.json", "no record of its training set"),
        ("versions.json", "Scores"),
        ("config.yaml", "not recorded"),
    ],
)
def test_a_missing_piece_is_a_sentence(run: Path, workspace: Workspace, gone: str, sentence: str) -> None:
    (run / gone).unlink()
    assert sentence in write_report(run, workspace).html.read_text()


@pytest.mark.parametrize("damaged", ["embeddings/caviar.trained.npz", "masks/caviar.npz"])
def test_a_damaged_array_is_a_sentence(run: Path, workspace: Workspace, damaged: str) -> None:
    (run / damaged).write_bytes(b"PK\x03\x04 no archive")
    assert "could not be read" in write_report(run, workspace).html.read_text()


def test_missing_images_labels_and_manifests_are_sentences(run: Path, workspace: Workspace) -> None:
    for image in (workspace.data_root / "3DPeS" / "bounding_box_train").glob("0003*"):
        image.unlink()
    assert "image gone or unreadable" in write_report(run, workspace).html.read_text()
    for shard in shards.label_shards(workspace.labels):
        shard.unlink()
    workspace.manifest("caviar").unlink()
    found = json.loads(write_report(run, workspace).json.read_text())
    assert len(found["missing"]) == 2
    assert "no longer there" in found["missing"][0] and "no manifest" in found["missing"][1]


def test_a_run_without_scores_names_the_command(run: Path, workspace: Workspace) -> None:
    (run / "scores.json").unlink()
    with pytest.raises(DataError, match=r"make eval RUN="):
        write_report(run, workspace)
    with pytest.raises(DataError, match="no such run"):
        write_report(run / "nowhere", workspace)


def test_intervals_camera_pairs_and_histograms_are_shown(run: Path, workspace: Workspace) -> None:
    paths = write_report(run, workspace)
    found = json.loads(paths.json.read_text())
    assert found["details"]["caviar"]["trained"] == DETAILS and found["re_ranking"] is False
    assert found["per_split"]["caviar"]["trained"]["standard_error"]["mean_ap"] == pytest.approx(2.0)
    text = paths.markdown.read_text()
    assert "| caviar | trained | 38.2 to 46.0 | 50.0 to 71.0 | 2.00 | one split |" in text
    assert text.index("| 2 → 1 | 5 | 33.3 | 40.0 |") < text.index("| 1 → 2 | 9 | 55.0 | 60.0 |")  # hardest first
    assert "| upper body | 30.0 | 31.0 |" in text
    page = paths.html.read_text()
    labels = [attrs.get("aria-label") or "" for _, attrs in _Page(page).tags]
    assert "3 of 14 queries have an average precision below 50 %" in labels
    assert "distances of the same person and of other people overlap by 35%" in labels
    assert page.count("<summary>Camera pairs (%)</summary>") == 1


def test_a_run_scored_before_there_were_details_has_a_report(run: Path, workspace: Workspace) -> None:
    scores = json.loads((run / "scores.json").read_text())
    del scores["details"]
    (run / "scores.json").write_text(json.dumps(scores))
    assert "What stands behind the scores" not in write_report(run, workspace).html.read_text()
