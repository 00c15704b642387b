"""The report of a small fabricated run: numbers, escaping, strips against a naive ranking, missing pieces."""

import ast
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import reid.report
from reid.config import load_config
from reid.evaluation.ranking import Ranking
from reid.evaluation.results import (
    Examples,
    QueryResults,
    read_queries,
    read_results,
    write_examples,
    write_queries,
)
from reid.metrics.paired import paired_difference
from reid.protocols.protocol import evaluation_splits, parse_protocol
from reid.report.compare import write_comparison
from reid.report.page import one_of_each_image
from reid.report.pictures import mask_outlines
from reid.report.tables import interval_table
from reid.report.write import write_report
from reid.training.run_folder import open_run, write_image_ids, write_training_images
from shared import labels as shards
from shared.errors import DataError
from shared.geometry import Box
from shared.images import image_id_of
from shared.manifest import read_manifest, write_manifest
from shared.schemas import PARTS, Kind, LabelRow, LabelStatus, ManifestRow
from shared.workspace import Workspace
from tests.rows import label_row, manifest_row

PEOPLE = 14
HOSTILE = "<script>alert(1)"
DETAILS = {
    "resamples": 1234,
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
    return manifest_row(
        dataset=dataset,
        split=split,
        path=path,
        image_id=image_id_of(content),
        width=16,
        height=32,
        kind=Kind.DISTRACTOR if identity is None else Kind.PERSON,
        identity=identity,
        camera=camera,
    )


def _label(row: ManifestRow, part: str, status: LabelStatus) -> LabelRow:
    box = Box(2, 1, 14, 9) if status == LabelStatus.OK else None
    return label_row(row, part, box, status=status, score=0.5, engine="body_prior", model=HOSTILE)


TEST = {
    "role": "target",
    "protocol": "a line",
    "rule": "fixed query and gallery",
    "splits": 1,
    "queries": 50,
    "valid_queries": 28,
    "duplicates": 3,
    "scored_duplicates": 2,
    "cameras": True,
}
GAIN = {"difference": 31.25, "low": 12.34, "high": 40.0, "p_value": 0.0123, "identities": 14}
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
            "re_ranking": False,
            "scores": {"caviar": {"trained": SCORES, "untrained": dict.fromkeys(SCORES, 10.0)}},
            "details": {"caviar": {"trained": {"intervals": {"mean_ap": [0, 1], "rank_1": [0, 1]}}}},
            "breakdowns": {"caviar": {"trained": DETAILS, "untrained": {}}},
            "per_split": {"caviar": {"trained": [{"mean_ap": 40.0}, {"mean_ap": 44.0}]}},
            "gains": {"caviar": {"mean_ap": GAIN, "rank_1": {**GAIN, "p_value": 0.00005}}},
            "tests": {"caviar": TEST},
            "models": {"trained": "T", "untrained": "U"},
            "seconds": {"stage1": 2.5},
        },
    )
    for stage, columns in (("stage1", "epoch,loss"), ("stage2", "epoch,loss,mask_iou")):
        lines = [",".join([str(epoch), "1.5", "0.4"][: columns.count(",") + 1]) for epoch in (1, 2, 3)]
        (folder / stage).mkdir()
        (folder / stage / "metrics.csv").write_text("\n".join([columns, *lines, "4,0.3,0.1,9", "5"]))
    paths = np.array([row.path for row in target_rows])
    protocol = parse_protocol("3dpes2caviar", workspace.data_root)
    (split,) = evaluation_splits(protocol, "caviar", target_rows)
    for state, digest, values in (("trained", "T", features), ("untrained", "U", features[::-1])):
        feature = {row.path: value for row, value in zip(target_rows, values, strict=True)}
        ranking = Ranking.of(split, lambda rows, f=feature: np.stack([f[row.path] for row in rows]), re_ranking=False)
        queries = QueryResults.of(target_rows, [split], [ranking.scores(50, 50)], model_sha256=digest, re_ranking=False)
        write_queries(folder, "caviar", state, queries)
    (folder / "masks").mkdir()
    paths = np.array([row.path for row in target_rows])
    write_examples(folder, _examples(workspace))
    np.savez(folder / "masks" / "caviar.npz", paths=paths[:3], masks=np.ones((3, 3, 4, 2), bool))
    return folder


def _examples(workspace: Workspace) -> Examples:
    rows = read_manifest(workspace.manifest("3dpes"))[:2]
    attention = np.zeros((2, 3, 4, 2), np.float32)
    attention[:, 0, 1, 1] = 0.6
    attention[:, 0, 2, 0] = 0.3
    return Examples(
        datasets=np.array([row.dataset for row in rows]),
        paths=np.array([row.path for row in rows]),
        visible=np.ones((2, 6, 3, 4, 2), bool),
        attention=attention,
        model_sha256="T",
    )


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
        {"engine": "body_prior", "model": HOSTILE, "prompt_version": "p", "rows": 8 * len(PARTS)}
    ]
    assert found["labels"]["statuses"]["legs"] == {"absent": 1, "ok": 7}
    assert found["reproduce"]["changed_settings"] == ["stage2.epochs=3"]
    assert "--run 'a|b<b>'" in found["reproduce"]["commands"][-1]
    assert found["missing"] == []


def test_markdown_numbers_are_the_json_numbers(run: Path, workspace: Workspace) -> None:
    paths = write_report(run, workspace)
    scores = json.loads(paths.json.read_text())["scores"]["caviar"]
    table = paths.markdown.read_text().split("## Targets")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "| caviar" in line]
    cells = {line[1]: line[2:] for line in lines}
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
    starts = [number for number, label in enumerate(labels) if label and label.startswith("query")]
    filled: list[int] = []  # parts drawn over each tile
    for tag, attrs in page.tags:
        if tag == "figure" and (attrs.get("class") or "").startswith("tile"):
            filled.append(0)
        elif tag == "path" and "fill-opacity" in attrs:
            filled[-1] += 1
    drawn: list[tuple[bool, int]] = []
    for start in starts[:3]:  # best, median, worst; the others are in the failure browser
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
        ("evaluation/caviar.trained.npz", "No CMC curve and ranked galleries of caviar, trained model"),
        ("stage1/metrics.csv", "No loss curve of stage 1"),
        ("masks/caviar.npz", "No predicted part masks of caviar"),
        ("training_set.json", "no record of its training set"),
        ("versions.json", "Scores"),
        ("config.yaml", "not recorded"),
    ],
)
def test_a_missing_piece_is_a_sentence(run: Path, workspace: Workspace, gone: str, sentence: str) -> None:
    (run / gone).unlink()
    page = write_report(run, workspace).html.read_text()
    assert sentence in page
    if ".npz" in gone:
        assert "dgreid eval --run a|b&lt;b&gt;" in page


@pytest.mark.parametrize("damaged", ["evaluation/caviar.trained.npz", "masks/caviar.npz"])
def test_a_damaged_array_is_a_sentence(run: Path, workspace: Workspace, damaged: str) -> None:
    (run / damaged).write_bytes(b"PK\x03\x04 no archive")
    assert "could not be read" in write_report(run, workspace).html.read_text()


def test_missing_images_labels_and_manifests_are_sentences(run: Path, workspace: Workspace) -> None:
    for image in (workspace.data_root / "3DPeS" / "bounding_box_train").glob("0003*"):
        image.unlink()
    files = write_report(run, workspace)
    assert "image gone or unreadable" in files.html.read_text()
    assert files.missing == ("1 images cannot be found or read",)
    for shard in shards.label_shards(workspace.labels):
        shard.unlink()
    workspace.manifest("caviar").unlink()  # the ranked galleries are read, not made again
    (told,) = json.loads(write_report(run, workspace).json.read_text())["missing"]
    assert "no longer there" in told


def test_a_run_without_scores_names_the_command(run: Path, workspace: Workspace) -> None:
    (run / "scores.json").unlink()
    with pytest.raises(DataError, match=r"dgreid eval --run a\|b<b>"):
        write_report(run, workspace)
    with pytest.raises(DataError, match="no such run"):
        write_report(run / "nowhere", workspace)


def test_intervals_camera_pairs_and_histograms_are_shown(run: Path, workspace: Workspace) -> None:
    paths = write_report(run, workspace)
    found = json.loads(paths.json.read_text())
    assert found["details"]["caviar"]["trained"] == DETAILS and found["re_ranking"] is False
    assert found["per_split"]["caviar"]["trained"]["standard_error"]["mean_ap"] == pytest.approx(2.0)
    lines = [
        " | ".join(cell.strip() for cell in line.split("|")[1:-1]) for line in paths.markdown.read_text().splitlines()
    ]
    assert "caviar | trained | 38.2 to 46.0 | 50.0 to 71.0 | 2.00 | one split" in lines
    assert lines.index("2 → 1 | 5 | 33.3 | 40.0") < lines.index("1 → 2 | 9 | 55.0 | 60.0")  # hardest first
    assert "upper body | 30.0 | 31.0" in lines
    page = paths.html.read_text()
    labels = [attrs.get("aria-label") or "" for _, attrs in _Page(page).tags]
    assert "3 of 14 queries have an average precision below 50 %" in labels
    assert "distances of the same person and of other people overlap by 35%" in labels
    assert page.count("<summary>Camera pairs (%)</summary>") == 1 and "1,234 resamples" in page
    assert "do not average to the score" in page


def test_the_paired_test_is_shown_with_its_interval(run: Path, workspace: Workspace) -> None:
    paths = write_report(run, workspace)
    for text in (paths.markdown.read_text(), paths.html.read_text()):
        for cell in ("+31.2", "+12.3 to +40.0", "0.0123"):
            assert cell in text
    assert "0.0002" in paths.markdown.read_text()


def test_cameras_are_a_table_of_colours(run: Path, workspace: Workspace) -> None:
    page = write_report(run, workspace).html.read_text()
    assert re.findall(r'style="--share: (\d+)%" title="(\d+) queries">([\d.]+)<', page) == [
        ("55", "9", "55.0"),
        ("33", "5", "33.3"),
    ]


def test_failures_are_the_queries_of_lowest_precision_and_most_changed(run: Path, workspace: Workspace) -> None:
    results = read_results(run)
    queries = {state: read_queries(run, results, "caviar", state) for state in ("trained", "untrained")}
    page = write_report(run, workspace).html.read_text()
    part = page.split('<section id="failures">')[1].split("</section>")[0]
    blocks = {block.split("<")[0]: block for block in part.split("<h3>")[1:]}
    titles = {name: re.findall(r"<summary><b>(.*?)</b>", block) for name, block in blocks.items()}
    precision = {state: 100 * found.average_precision for state, found in queries.items()}
    worst = sorted(value for value in precision["trained"] if value < 100)[:12]
    assert titles["caviar: lowest average precision"] == [f"{value:.1f} %" for value in worst]
    change = precision["trained"] - precision["untrained"]
    (largest,) = np.flatnonzero(change == np.nanmax(change))[:1]
    wanted = f"{precision['trained'][largest]:.1f} % (untrained {precision['untrained'][largest]:.1f} %)"
    assert titles["caviar: most gained by training"][0] == wanted
    assert blocks["caviar: most gained by training"].count("<h4>untrained: ") == len(
        titles["caviar: most gained by training"]
    )


def test_an_image_that_is_a_query_of_several_splits_is_shown_once(run: Path) -> None:
    queries = read_queries(run, read_results(run), "caviar", "trained")
    twice = replace(queries, query=np.array([4, 7, 4, 7, 9], np.int32))
    assert one_of_each_image(twice, np.array([2, 1, 0, 4, 3])).tolist() == [2, 1, 4]


def test_scores_that_are_the_same_in_every_resample_have_no_interval() -> None:
    found = {"intervals": {"mean_ap": [1.0, 2.5], "rank_1": [0.0, 0.0]}}
    _, rows = interval_table({"details": {"grid": {"untrained": found}}, "per_split": {}})
    assert rows[0][2:4] == ("1.0 to 2.5", "none: 0.0 in every resample")


@pytest.fixture
def second_run(run: Path, target_rows: list[ManifestRow], workspace: Workspace) -> Path:
    """The same queries by another model."""
    folder = run.parent / "b"
    shutil.copytree(run, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "seed": 5}))
    trained = read_queries(folder, read_results(folder), "caviar", "untrained")
    write_queries(folder, "caviar", "trained", replace(trained, model_sha256="T"))
    return folder


def test_the_comparison_holds_both_runs_and_their_paired_test(
    run: Path, second_run: Path, workspace: Workspace, target_rows: list[ManifestRow]
) -> None:
    out = workspace.runs_root / "compare.html"
    assert write_comparison([run, second_run], workspace, out) == []
    page = out.read_text()
    one, other = (read_queries(folder, read_results(folder), "caviar", "trained") for folder in (run, second_run))
    person = {row.path: row.identity for row in target_rows}
    expected = paired_difference(
        [100 * one.average_precision], [100 * other.average_precision], [[person[p] for p in one.paths[one.query]]]
    )
    assert f">{expected.difference:+.1f}<" in page
    assert f">{expected.low:+.1f} to {expected.high:+.1f}<" in page
    assert "a|b&lt;b&gt;" in page and "<b>b</b>" not in page, "names are text"
    assert "<script" not in page and page.count('<div class="strip"') >= 4
    links, sections = (set(re.findall(pattern, page)) for pattern in (r'<a href="#(.*?)"', r'<section id="(.*?)"'))
    assert links == sections
    write_comparison([run, second_run], workspace, out, images=False)
    assert "data:image" not in out.read_text() and ".jpg" not in out.read_text()


def test_masks_by_block_stand_beside_the_boxes(run: Path, workspace: Workspace) -> None:
    page = write_report(run, workspace).html.read_text()
    part = page.split('<section id="blocks">')[1].split("</section>")[0]
    marks = re.findall(r"<figcaption><b>(.*?)</b>", part)
    assert marks == 2 * ["labels", "block 1", "block 2", "block 3", "block 5", "block 6", "head", "upper body", "legs"]
    assert "90% on patches" in part and 'opacity="0.8"' in part and 'opacity="0.48"' in part
    first = part.split("<b>labels</b>")[0]
    assert first.count('d="M2.0 1.0H14.0V9.0H2.0Z"') == 3, "the boxes of the labels"


def test_examples_of_another_model_are_not_shown(run: Path, workspace: Workspace) -> None:
    write_examples(run, replace(_examples(workspace), model_sha256="U"))
    page = write_report(run, workspace)
    assert '<section id="blocks">' not in page.html.read_text()
    assert any("No masks by block" in sentence for sentence in page.missing)


def test_runs_on_other_queries_are_not_compared(run: Path, second_run: Path, workspace: Workspace) -> None:
    found = read_queries(second_run, read_results(second_run), "caviar", "trained")
    write_queries(second_run, "caviar", "trained", replace(found, query=found.query[::-1].copy()))
    (sentence,) = write_comparison([run, second_run], workspace, workspace.runs_root / "c.html")
    assert "different queries" in sentence


def test_outlines_enclose_the_patches() -> None:
    mask = np.array([[[0, 1], [0, 1], [0, 0]]], bool)
    ((path, colour),) = mask_outlines(mask, ["#fff"], 20, 30)
    assert colour == "#fff"
    assert set(re.findall("M[^M]+", path)) == {
        "M10.0 0.0v10.0", "M20.0 0.0v10.0", "M10.0 10.0v10.0", "M20.0 10.0v10.0", "M10.0 0.0h10.0", "M10.0 20.0h10.0",
    }  # fmt: skip


def test_queries_without_a_match_and_duplicates_are_told(run: Path, workspace: Workspace) -> None:
    paths = write_report(run, workspace)
    for text in (paths.markdown.read_text(), paths.html.read_text()):
        assert "caviar: 28 of 50 queries scored; the others have no match in the gallery." in text
        assert "caviar: 3 query images are in the gallery too (same content); 2 of them count as found." in text


def test_a_run_of_an_earlier_version_has_a_report_that_says_what_it_lacks(run: Path, workspace: Workspace) -> None:
    scores = json.loads((run / "scores.json").read_text())
    for key in ("breakdowns", "tests", "models"):
        del scores[key]
    (run / "scores.json").write_text(json.dumps(scores))
    shutil.rmtree(run / "evaluation")
    files = write_report(run, workspace)
    page = files.html.read_text()
    assert "Confidence intervals and breakdowns of caviar are of the first of 2 splits" in page
    assert "41.2" in page and 'class="strip"' not in page
    assert len([sentence for sentence in files.missing if "dgreid eval --run" in sentence]) == 4
    del scores["details"]
    (run / "scores.json").write_text(json.dumps(scores))
    assert 'id="breakdowns"' not in write_report(run, workspace).html.read_text()


def test_ranked_galleries_of_another_evaluation_are_not_shown(run: Path, workspace: Workspace) -> None:
    scores = json.loads((run / "scores.json").read_text())
    scores["models"]["trained"] = "another"
    (run / "scores.json").write_text(json.dumps(scores))
    assert "not of the evaluation in scores.json" in write_report(run, workspace).html.read_text()


def test_an_existing_page_never_gets_poorer(run: Path, workspace: Workspace) -> None:
    before = write_report(run, workspace).html.read_text()
    shutil.rmtree(workspace.data_root / "CAVIAR4REID")
    files = write_report(run, workspace)
    assert files.html.read_text() == before
    assert "pictures instead of" in files.html_kept and "cannot be found or read" in files.html_kept
    assert write_report(run, workspace, replace=True).html_kept == ""
    assert "image gone or unreadable" in files.html.read_text()


def test_without_images_replaces_a_page_with_images(run: Path, workspace: Workspace) -> None:
    write_report(run, workspace)
    assert "data:image" not in write_report(run, workspace, images=False).html.read_text()


def test_a_page_that_shows_less_because_less_was_evaluated_is_written(run: Path, workspace: Workspace) -> None:
    write_report(run, workspace)
    scores = json.loads((run / "scores.json").read_text())
    scores["breakdowns"]["caviar"]["trained"]["ap_histogram"] = None
    (run / "scores.json").write_text(json.dumps(scores))
    assert write_report(run, workspace).html_kept == ""


def test_labels_are_counted_over_the_images_that_were_trained_on(run: Path, workspace: Workspace) -> None:
    rows = read_manifest(workspace.manifest("3dpes"))
    write_image_ids(run, [row.image_id for row in rows])  # of held-out people, too
    write_training_images(run, ["3dpes"] * 5, [row.path for row in rows[:5]])
    record = json.loads((run / "training_set.json").read_text())
    (run / "training_set.json").write_text(json.dumps({**record, "images": 5}))
    files = write_report(run, workspace)
    found = json.loads(files.json.read_text())["labels"]
    assert found["images"] == 5 and found["statuses"]["head"] == {"ok": 5}
    assert "over 5 training images" in files.html.read_text() and files.missing == ()


def test_a_run_that_does_not_record_its_images_says_so_where_the_numbers_differ(
    run: Path, workspace: Workspace
) -> None:
    record = json.loads((run / "training_set.json").read_text())
    (run / "training_set.json").write_text(json.dumps({**record, "images": 3}))
    (told,) = write_report(run, workspace).missing
    assert "counted over 8 images, but 3 were trained on: the run, of an earlier version" in told
    write_training_images(
        run, ["3dpes"] * 3, ["gone", *(row.path for row in read_manifest(workspace.manifest("3dpes"))[:2])]
    )
    (told,) = write_report(run, workspace).missing
    assert "counted over 2 images, but 3 were trained on: the manifests have changed" in told
    (run / "training_images.jsonl").write_text("[1")
    assert any("not a list of training images" in told for told in write_report(run, workspace).missing)


def test_a_copy_of_a_training_image_is_counted_only_if_it_was_trained_on(run: Path, workspace: Workspace) -> None:
    """As under a cap on images per identity: the id, which is of the content, does not tell the copies apart."""
    rows = read_manifest(workspace.manifest("3dpes"))
    copies = [row.model_copy(update={"path": row.path.replace("c1s1", "c1s2")}) for row in rows]
    write_manifest([*rows, *copies], workspace.manifest("3dpes"))
    write_image_ids(run, [row.image_id for row in rows])
    write_training_images(run, ["3dpes"] * len(rows), [row.path for row in rows])
    files = write_report(run, workspace)
    found = json.loads(files.json.read_text())["labels"]
    assert found["images"] == 8 and found["statuses"]["head"] == {"ok": 8} and files.missing == ()


def test_contents_point_at_sections(run: Path, workspace: Workspace) -> None:
    page = _Page(write_report(run, workspace).html.read_text())
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    sections = {f"#{attrs['id']}" for tag, attrs in page.tags if tag == "section" and "id" in attrs}
    assert links == sections and len(links) == 11


def test_the_report_computes_no_score() -> None:
    """No metric is imported by reid.report, and neither are the modules that rank."""
    forbidden = ("reid.metrics", "reid.evaluation.ranking", "reid.evaluation.details", "reid.inference")
    imported = {
        (file.name, module)
        for file in (Path(reid.report.__file__).parent).glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for module in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if module.startswith(forbidden)
    }
    assert not imported


def test_a_score_on_a_source_is_marked_wherever_it_is_shown(run: Path, workspace: Workspace) -> None:
    scores = json.loads((run / "scores.json").read_text())
    scores["scores"]["3dpes"] = {"trained": SCORES}
    scores["tests"]["3dpes"] = {**TEST, "role": "source"}
    (run / "scores.json").write_text(json.dumps(scores))
    paths = write_report(run, workspace)
    page, text = paths.html.read_text(), paths.markdown.read_text()
    assert "3dpes (trained on)" in page and "| 3dpes (trained on)" in text
    assert "<h1>3dpes → caviar</h1>" in page and "supervised, not cross-domain" in page
