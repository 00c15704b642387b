"""embed, index, search and what follows from them, as a user meets them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.__main__ import run
from pipelines.synthetic.clip import render_clip
from reid import PersonEncoder
from reid.inference.embeddings import EmbeddingStore
from shared.workspace import Workspace
from tests.pipelines.conftest import write_people
from tests.pipelines.test_commands import refused


@pytest.fixture
def embedded(workspace: Workspace, pocket_run: Path, tmp_path: Path) -> Path:
    out = tmp_path / "people.parquet"
    assert run(["embed", "--run", str(pocket_run), "--images", "caviar", "--out", str(out)]) == 0
    return out


def test_embed_takes_folders_data_sets_and_manifests(
    workspace: Workspace, pocket_run: Path, embedded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = EmbeddingStore(embedded)
    assert set(store.facts["identity"].to_pylist()) == {"50", "51", "52", "53"}
    assert set(store.facts["camera"].to_pylist()) == {"1", "2"}
    folder = workspace.data_root / "CAVIAR4REID"
    encoder = PersonEncoder.load(pocket_run, device="cpu")
    paths = [folder / path for path in store.facts["path"].to_pylist()]
    np.testing.assert_allclose(store.features()[0], encoder(paths), atol=1e-3)
    for images in (str(folder), str(workspace.manifest("caviar"))):
        out = tmp_path / "again"
        assert run(["embed", "--run", str(pocket_run), "--images", images, "--out", str(out)]) == 0
        assert len(EmbeddingStore(out)) == len(store) == 16
    (folder / "query" / "broken.jpg").write_bytes(b"no image")
    command = ["embed", "--run", str(pocket_run), "--images", str(folder), "--out", str(tmp_path / "again")]
    refused(command, 1, "1 images could not be read", "broken.jpg", "unreadable.txt", capfd=capfd)


def test_embed_refuses_what_is_not_there(
    workspace: Workspace, pocket_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--run", str(pocket_run)]
    refused(["embed", "--images", "atlantis", *out], 2, "neither a folder nor a data set", capfd=capfd)
    (tmp_path / "empty").mkdir()
    refused(["embed", "--images", str(tmp_path / "empty"), *out], 2, "no images here", capfd=capfd)
    (tmp_path / "boxes.txt").write_text("1,1,0,0,5,5\n")
    video = ["embed", "--images", str(tmp_path / "gone.mp4"), "--detections", str(tmp_path / "boxes.txt"), *out]
    refused(video, 2, "no such video", capfd=capfd)
    refused(
        ["embed", "--images", "caviar", "--out", str(tmp_path / "boxes.txt"), "--run", str(pocket_run)],
        2,
        "this is a file",
        capfd=capfd,
    )


def test_search_finds_the_query_itself_first_and_tells_it_in_every_form(
    workspace: Workspace, pocket_run: Path, embedded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    query = workspace.data_root / "CAVIAR4REID" / "query" / "0052_c1s1_000001_00.jpg"
    command = ["search", "--run", str(pocket_run), "--gallery", str(embedded), "--query", str(query), "--exact"]
    page = tmp_path / "page.html"
    capfd.readouterr()
    assert run([*command, "--top", "3", "--format", "json", "--html", str(page)]) == 0
    (found,) = json.loads(capfd.readouterr().out)["queries"]
    assert found["found"][0]["path"] == "query/0052_c1s1_000001_00.jpg"
    assert found["found"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert len(found["found"]) == 3 and "probability" not in found["found"][0]
    html = page.read_text()
    assert html.count("<image") == 4 and "<script" not in html
    assert run([*command, "--camera", "2", "--where", "identity <> '52'", "--format", "json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)["queries"]
    assert {(one["camera"], one["identity"]) for one in found["found"]} == {("2", "50"), ("2", "51"), ("2", "53")}
    assert run([*command, "--part", "whole"]) == 0
    assert "whole alone" in capfd.readouterr().out
    refused([*command, "--part", "hat"], 2, "no part 'hat'", "upper_body", capfd=capfd)
    refused([*command, "--where", "nonsense("], 2, "cannot use the condition", capfd=capfd)
    refused([*command[:-1], "--approximate"], 2, "no approximate index", capfd=capfd)


def test_index_adds_replaces_and_removes(
    workspace: Workspace, pocket_run: Path, embedded: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = workspace.data_root / "CAVIAR4REID" / "query"
    first = sorted(folder.iterdir())[0]
    assert run(["index", str(embedded), "--remove", "camera = '2'"]) == 0
    assert "8 images removed" in capfd.readouterr().out
    assert run(["index", str(embedded), "--run", str(pocket_run), "--images", "caviar"]) == 0
    assert len(EmbeddingStore(embedded)) == 16
    first.unlink()
    assert run(["index", str(embedded), "--prune"]) == 0
    assert "1 images removed" in capfd.readouterr().out and len(EmbeddingStore(embedded)) == 15
    refused(["index", str(embedded), "--approximate"], 2, "too few for an approximate index", capfd=capfd)


def test_calibrate_needs_people_that_were_not_trained_on(
    workspace: Workspace, pocket_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_people(tmp_path / "data" / "VIPeR2", identities=30, first=100, seed=3)
    (tmp_path / "data" / "VIPeR2" / "dataset.yaml").write_text("layout: market1501\nname: own\n")
    folder = workspace.training_runs / "mine"
    shutil.copytree(pocket_run, folder)
    command = ["calibrate", "--run", "mine"]
    refused(command, 2, "does not say which images", capfd=capfd)
    nowhere = ["search", "--run", "mine", "--gallery", str(tmp_path), "--query", "a.jpg"]  # not calibrated yet
    refused([*nowhere, "--prior", "1"], 2, "--prior 1 is not between 0 and 1", capfd=capfd)
    refused([*nowhere, "--false-accepts", "0.5"], 2, "'0.5' is not one of '1e-2'", capfd=capfd)
    assert run([*command, "--data", "own", "--test", "caviar"]) == 0
    out = capfd.readouterr().out
    assert "fitted on 30 people" in out and "too few pairs to tell" in out and "caviar" in out
    gallery = str(tmp_path / "gallery")
    assert run(["embed", "--run", "mine", "--images", "own", "--out", gallery]) == 0
    query = next((tmp_path / "data" / "VIPeR2" / "query").iterdir())
    search = ["search", "--run", "mine", "--gallery", gallery, "--query", str(query), "--false-accepts", "1e-2"]
    capfd.readouterr()
    assert run([*search, "--format", "json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)["queries"]
    assert found["unknown"] is False and found["found"][0]["probability"] > 0.9
    refused([*search[:-1], "1e-4"], 2, "1e-4 is not known", capfd=capfd)


def test_duplicates_finds_a_person_with_two_names_and_a_wrong_label(
    workspace: Workspace, pocket_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_people(tmp_path / "data" / "own", identities=8, first=1, seed=5)
    folder = tmp_path / "data" / "own"
    (folder / "dataset.yaml").write_text("layout: market1501\n")
    for path in folder.rglob("0002_c2*"):  # half of person 2 under another number
        path.rename(path.with_name(path.name.replace("0002_", "0099_")))
    wrong = next(folder.rglob("0006_c1s1_000001_00.jpg"))
    shutil.copy(next(folder.rglob("0007_c1s1_000002_00.jpg")), wrong)
    gallery = str(tmp_path / "gallery")
    assert run(["embed", "--run", str(pocket_run), "--images", "own", "--out", gallery]) == 0
    refused(["duplicates", gallery, "--run", str(pocket_run)], 2, "not calibrated", capfd=capfd)
    assert run(["duplicates", gallery, "--threshold", "0.97", "--format", "json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert {found["identities"][0]["first"], found["identities"][0]["second"]} == {"2", "99"}
    first = found["images"][0]
    assert (Path(first["path"]).name, first["nearer"]) == (wrong.name, "7")
    assert run(["duplicates", gallery, "--threshold", "0.97"]) == 0
    assert "probably mislabelled" in capfd.readouterr().out


def test_link_joins_the_tracklets_of_two_cameras(
    workspace: Workspace, pocket_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    galleries = []
    for camera in (1, 2):
        frames = tmp_path / f"camera{camera}"
        frames.mkdir()
        lines = []
        for frame in render_clip("plaza", camera, identities=3, frames=24, seed=4):
            Image.fromarray(frame.pixels).save(frames / f"{frame.number:06d}.png")
            for identity, box in frame.boxes.items():
                if 60 < box.x_min < 380:
                    place = f"{box.x_min},{box.y_min},{box.width},{box.height}"
                    lines.append(f"{frame.number},{10 * camera + identity},{place}\n")
        (tmp_path / f"{camera}.txt").write_text("".join(lines))
        galleries.append(str(tmp_path / f"gallery{camera}"))
        command = ["embed", "--run", str(pocket_run), "--images", str(frames), "--out", galleries[-1], "--fps", "10"]
        assert run([*command, "--detections", str(tmp_path / f"{camera}.txt"), "--camera", f"c{camera}"]) == 0
    out = tmp_path / "people.csv"
    assert run(["link", *galleries, "--out", str(out), "--threshold", "-1"]) == 0
    rows = list(csv.DictReader(out.open()))
    assert {(row["camera"], int(row["track"]) % 10) for row in rows} == {
        (f"c{c}", n) for c in (1, 2) for n in (1, 2, 3)
    }
    for camera in ("c1", "c2"):  # people seen at one time in one camera stay apart, however low the threshold
        mine = [row for row in rows if row["camera"] == camera]
        for one in mine:
            for other in mine:
                together = max(float(one["first_s"]), float(other["first_s"])) <= min(
                    float(one["last_s"]), float(other["last_s"])
                )
                assert one is other or not together or one["person"] != other["person"]
    assert run(["link", *galleries, "--out", str(out), "--threshold", "1.1"]) == 0
    assert len({row["person"] for row in csv.DictReader(out.open())}) == len(rows)
    refused(["link", *galleries, "--out", str(out), "--travel", "c1=3"], 2, "camera:camera=seconds", capfd=capfd)
    refused(["link", *galleries, "--out", str(out), "--run", str(pocket_run)], 2, "not calibrated", capfd=capfd)
