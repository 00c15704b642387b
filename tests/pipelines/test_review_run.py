"""`dgreid review --run`: what the page shows of a trained model is what its evaluation wrote."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from labeler.review.app import create_app
from labeler.review.pictures import Pictures
from labeler.review.ranked import neighbours
from labeler.review.tables import LabelTables
from pipelines.__main__ import run
from pipelines.review import _feature_maps, _targets
from reid.evaluation.results import read_examples, read_queries, read_results
from shared.datasets import locate
from shared.manifest import read_manifest
from shared.workspace import Workspace
from tests.pipelines.conftest import write_people


@pytest.fixture
def trained(workspace: Workspace) -> Path:
    """A run on 3dpes, tested on caviar."""
    shutil.rmtree(workspace.data_root / "CAVIAR4REID")
    write_people(workspace.data_root / "CAVIAR4REID", identities=12, first=50, seed=1)
    assert run(["label", "3dpes", "--engine", "body_prior"]) == 0
    settings = ["stage1.epochs=1", "stage2.epochs=1", "data.workers=0"]
    assert run(["train", "3dpes2caviar", "--preset", "tiny", "--run", "r", *settings]) == 0
    assert run(["eval", "--run", "r"]) == 0
    return workspace.training_runs / "r"


def test_failures_galleries_and_the_map(trained: Path, workspace: Workspace) -> None:
    results = read_results(trained)
    seen = read_examples(trained, results.models["trained"])
    assert len(seen.paths) > 0 and set(seen.datasets) == {"3dpes"}
    assert not seen.attention[~seen.visible[:, -1]].any(), "a part token sees only its own patches"
    assert results.gains["caviar"]["mean_ap"]["difference"] == pytest.approx(
        results.scores["caviar"]["trained"]["mean_ap"] - results.scores["caviar"]["untrained"]["mean_ap"]
    )
    targets = _targets([trained], workspace)
    assert [one.name for one in targets] == ["r, trained", "r, untrained"]
    one = targets[0]
    queries = read_queries(trained, read_results(trained), "caviar", "trained")
    rows = {row.image_id: row for row in read_manifest(workspace.manifest("caviar"))}
    for row in range(len(one.query)):
        found = neighbours(one, row, 50)
        shown = [rows[each.image_id].path for each in found if each.rank]
        assert shown == [queries.paths[image] for image in queries.ranked[row] if image >= 0]
        assert [each.correct for each in found if each.rank] == queries.correct[row][: len(shown)].tolist()
        query = rows[one.image_ids[one.query[row]]]
        left_out = [rows[each.image_id] for each in found if each.rank is None]
        assert {(each.identity, each.camera) for each in left_out} <= {(query.identity, query.camera)}
        assert [each.distance for each in found] == sorted(each.distance for each in found)
        assert set(found[0].by_part) == {"whole image", *one.parts}
    assert any(each.rank is None for row in range(len(one.query)) for each in neighbours(one, row, 50))

    pytest.importorskip("umap", reason="needs umap-learn: pip install 'dgreid[review]'")
    tables = LabelTables(workspace, ["caviar"], None)
    pictures = Pictures({"caviar": locate("caviar", workspace.data_root)}, workspace.runs_root / "review")
    app = create_app(
        tables,
        pictures,
        reviewer="anna",
        token="t",
        port=8310,
        targets=targets,
        feature_maps=lambda: _feature_maps(trained, targets, workspace),
    )
    with TestClient(app, base_url="http://127.0.0.1:8310", cookies={"dgreid_review_8310": "t"}) as client:
        page = client.get("/failures").text
        worst = 100 * np.nanmin(queries.average_precision)
        assert page.index(f"AP {worst:.1f} %") < page.index("untrained:")
        text = client.get("/failures/query", params={"model": one.name, "dataset": "caviar", "row": 0}).text
        assert "same camera" in text and "r, untrained" in text and 'class="mask"' in text
        assert (
            client.get("/failures/query", params={"model": one.name, "dataset": "caviar", "row": 99}).status_code == 404
        )
        assert client.get("/failures", params={"model": "nobody"}).status_code == 422
        points = client.get("/api/features").json()
        gallery = int(one.gallery.any(axis=0).sum())
        assert len(points["image_ids"]) == len(points["x"]) == gallery and set(points["groups"]) == {
            "data set", "camera", "identity",
        }  # fmt: skip
        assert client.put(f"/api/images/{one.image_ids[0]}", json={"accept": True}).status_code == 422, "no labels"
    first = _feature_maps(trained, targets, workspace)[0].places
    stored = np.load(trained / "embeddings" / "map.npz")["places"]
    assert np.array_equal(first, stored), "made once"


def test_pages_of_a_trained_run_in_a_browser(trained: Path, workspace: Workspace) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'dgreid[dev]'")
    from tests.pipelines.test_review_page import CHROMIUM, Window, free_port, served

    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium")
    from axe_playwright_python.sync_playwright import Axe

    assert run(["report", "--run", "r"]) == 0
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with served(workspace, free_port(), "--run", "r") as (address, _):
            for width in (1280, 390):
                window = Window(browser, width=width)
                page = window.open(address)
                assert page.url.endswith("/failures")
                links = ["/failures", page.locator(".query").first.get_attribute("href"), "/features"]
                for link in links:
                    page.goto(address.split("/failures")[0] + link)
                    page.wait_for_load_state("networkidle", timeout=200_000)  # the first map is compiled and made
                    assert page.evaluate("document.documentElement.scrollWidth") <= width, link
                    faults = Axe().run(page).response["violations"]
                    assert not [one["id"] for one in faults if one["impact"] in ("serious", "critical")], link
                points = page.evaluate("fetch('/api/features').then((answer) => answer.json())")
                inside = [x < sum((min(points["x"]), max(points["x"]))) / 2 for x in points["x"]]
                assert any(inside) and not all(inside)
                area = page.locator("#map").bounding_box()  # the map fills it: half of its width is half of the range
                left, top, middle = area["x"] + 1, area["y"] + 1, area["x"] + area["width"] / 2
                page.mouse.move(left, top)
                page.mouse.down()
                for corner in ((middle, top), (middle, top + area["height"] - 2), (left, top + area["height"] - 2)):
                    page.mouse.move(*corner)
                page.mouse.up()
                page.wait_for_url("**/?picked=*")
                assert page.locator("#total").text_content() == str(sum(inside))
                page.goto(address.split("/failures")[0] + links[1])
                assert not page.locator(".mask").first.is_visible()
                page.keyboard.press("m")
                assert page.locator(".mask").first.is_visible()
                assert window.said == []
        for width in (1400, 390):  # the report
            window = Window(browser, width=width)
            page = window.open((trained / "report.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            picture = page.locator("#masks .zoom svg").first
            small = picture.bounding_box()
            picture.click()
            large = picture.bounding_box()
            assert large["width"] == width > small["width"]
            picture.click()
            assert picture.bounding_box()["width"] == small["width"]
            assert page.locator("#retrieval .mask").first.is_hidden()
            page.check("#retrieval .mask-switch")
            assert page.locator("#retrieval .mask").first.is_visible()
            assert window.said == []
        browser.close()
