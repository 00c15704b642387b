"""`dgreid review` as people use it: the real command, driven by a real browser."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labeler.grounding.rows import part_row
from shared import labels
from shared.images import image_id_of
from shared.labels import choose_label_run, label_folder, write_label_table, write_record
from shared.manifest import build_manifest, write_manifest
from shared.parquet import to_table
from shared.schemas import LABEL_SCHEMA, PARTS, LabelRow, LabelStatus, ManifestRow
from shared.workspace import Workspace

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'dgreid[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")

ROOT = Path(__file__).parents[2]
W, H = 40, 100
BOXES = {"head": (10.0, 4.0, 30.0, 22.0), "upper_body": (6.0, 20.0, 34.0, 55.0), "legs": (8.0, 52.0, 32.0, 96.0)}


def label_rows(images: list[ManifestRow], run: str) -> list[Any]:
    answer = {"space": "original_pixels", "engine": "local", "model": "m", "prompt_version": "p", "attempts": 1}
    return [
        part_row(image, part, BOXES[part], label_run=run, status=LabelStatus.OK, **answer)
        for image in images
        for part in PARTS
    ]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Six people, each in two cameras, labelled by run `first`."""
    place = Workspace(tmp_path / "data", tmp_path / "runs")
    folder = place.data_root / "walkers"
    folder.mkdir(parents=True)
    (folder / "dataset.yaml").write_text('layout: pattern\npattern: "{identity}_c{camera}.jpg"\nsplit: train\n')
    rng = np.random.default_rng(0)
    for person in range(6):
        for camera in (1, 2):
            Image.fromarray(rng.integers(0, 255, (H, W, 3), np.uint8)).save(folder / f"{person}_c{camera}.jpg")
    images = build_manifest("walkers", place.data_root, place.manifest("walkers"))
    write_record(place.labels, "first", {"engine": "local", "parts": list(PARTS)})
    write_label_table(
        to_table(label_rows(images, "first"), LABEL_SCHEMA), label_folder(place.labels, "first", "walkers", "train")
    )
    return place


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def served(workspace: Workspace, port: int, *what: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The printed address, and the process."""
    environment = os.environ | {"DATA_ROOT": str(workspace.data_root), "RUNS_ROOT": str(workspace.runs_root)}
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "review",
        *(what or ["walkers"]),
        "--reviewer",
        "anna",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"{line}{process.communicate(timeout=10)}"
        wait_until(lambda: is_open(port))
        yield found[0], process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def is_open(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(400):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it never became true")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Window:
    """A page that fails the test for anything written to the console."""

    def __init__(self, browser: Any, *, width: int = 1280, height: int = 900, context: Any = None) -> None:
        self.context = context or browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))

    def open(self, address: str) -> Any:
        self.page.goto(address)
        return self.page


def row(workspace: Workspace, image_id: str, part: str) -> dict[str, Any]:
    run = choose_label_run(None, ["walkers"], workspace.labels)
    table = labels.newest_labels(workspace.labels, run, "walkers").to_pylist()
    return next(one for one in table if (one["image_id"], one["part"]) == (image_id, part))


def shown_id(page: Any) -> str:
    return str(page.url.split("/image/")[1].split("?")[0])


def drag(page: Any, corner: str, dx: int, dy: int) -> None:
    place = page.locator(f".grip.{corner}").bounding_box()
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up()


def until(page: Any, true: str) -> None:
    """Wait for a JavaScript expression; playwright's own way needs `eval`, which the page's policy forbids."""
    for _ in range(400):
        if page.evaluate(true):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {true}")


def wait_for_image(page: Any) -> None:
    page.wait_for_selector("#stage .box")


def test_query_drag_absent_undo_reload_and_sql(workspace: Workspace, browser: Any) -> None:
    with served(workspace, free_port()) as (address, _):
        window = Window(browser)
        page = window.open(address)
        page.fill("#q", "select image_id from manifest where camera = 2 order by path")
        page.click("text=Show")
        assert page.locator("#total").inner_text() == "6"
        page.click(".cell >> nth=0")
        wait_for_image(page)
        image, scale = shown_id(page), float(page.locator("#size").inner_text().split()[0]) / 100
        page.keyboard.press("1")
        drag(page, "se", int(4 * scale), int(6 * scale))
        wait_until(lambda: "first.corrected" in labels.label_runs(workspace.labels))
        page.wait_for_selector(".part:has-text('anna')")
        found = row(workspace, image, "head")
        assert found["x_min"] == BOXES["head"][0] and found["y_min"] == BOXES["head"][1]
        assert found["x_max"] == pytest.approx(34, abs=0.6) and found["y_max"] == pytest.approx(28, abs=0.6)
        page.keyboard.press("3")
        page.keyboard.press("x")
        page.wait_for_selector(".part:has-text('absent')")
        assert row(workspace, image, "legs")["status"] == "absent"
        page.keyboard.press("z")
        page.wait_for_selector("text=Undone")
        assert row(workspace, image, "legs")["status"] == "ok"
        page.reload()
        wait_for_image(page)
        box = page.locator("#stage .box[data-part=head]")
        assert float(box.get_attribute("width")) == pytest.approx(found["x_max"] - found["x_min"])
        assert window.said == []
    asked = subprocess.run(
        [sys.executable, "-m", "pipelines", "sql", "walkers", "--format", "csv",
         f"select model, x_max from labels where image_id = '{image}' and part = 'head' and engine = 'review'"],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"DATA_ROOT": str(workspace.data_root), "RUNS_ROOT": str(workspace.runs_root)},
    )  # fmt: skip
    assert asked.stdout.splitlines() == ["model,x_max", f"anna,{found['x_max']}"]


def test_training_prefers_the_corrections(workspace: Workspace, browser: Any) -> None:
    with served(workspace, free_port()) as (address, _):
        page = Window(browser).open(address)
        page.click(".cell >> nth=0")
        wait_for_image(page)
        image = shown_id(page)
        page.keyboard.press("1")
        drag(page, "se", 20, 0)
        page.wait_for_selector(".part:has-text('anna')")
    from reid.config import load_config
    from reid.data.training_set import build_training_set
    from reid.protocols.protocol import Protocol

    trained_on = build_training_set(
        Protocol("walkers2other", ("walkers",), ("other",)), load_config("tiny").data, PARTS, workspace
    )
    assert trained_on.label_run == "first.corrected"
    head = trained_on.boxes[trained_on.image_ids.index(image), 0]
    assert head[2] == row(workspace, image, "head")["x_max"] > BOXES["head"][2]


def test_two_windows_lose_nothing(workspace: Workspace, browser: Any) -> None:
    with served(workspace, free_port()) as (address, _):
        first = Window(browser)
        page = first.open(address)
        page.click(".cell >> nth=0")
        wait_for_image(page)
        image = shown_id(page)
        second = Window(browser, context=first.context)
        other = second.open(page.url)
        wait_for_image(other)
        page.bring_to_front()
        page.keyboard.press("1")
        page.keyboard.press("x")
        page.wait_for_selector(".part:has-text('absent')")
        # the second window still shows the old boxes; it decides something else without having looked again
        other.evaluate("document.querySelectorAll('.part')[2].click(); document.getElementById('absent').click()")
        other.wait_for_selector("text=changed in another window")
        assert row(workspace, image, "head")["status"] == "absent"
        assert row(workspace, image, "legs")["status"] == "ok", "not saved over what it had not seen"
        other.click("text=Save mine")
        until(other, "document.querySelectorAll('.part .ok').length === 1")
        assert [row(workspace, image, part)["status"] for part in PARTS] == ["absent", "ok", "absent"]


def test_a_killed_server_loses_nothing(workspace: Workspace, browser: Any) -> None:
    port = free_port()
    window = Window(browser)
    with served(workspace, port) as (address, process):
        page = window.open(address)
        page.click(".cell >> nth=0")
        wait_for_image(page)
        image = shown_id(page)
        page.keyboard.press("2")
        page.keyboard.press("x")
        page.wait_for_selector(".part:has-text('absent')")
        process.kill()
        process.wait()
        page.keyboard.press("1")
        page.keyboard.press("x")
        page.wait_for_selector("text=Not saved")
    assert row(workspace, image, "head")["status"] == "ok"
    with served(workspace, port) as (address, _):
        page.wait_for_selector("text=started again")
        page.goto(address)
        page.wait_for_selector("text=has been saved")
    assert [row(workspace, image, part)["status"] for part in PARTS] == ["absent", "absent", "ok"]


def test_a_window_that_is_closed_at_once_loses_nothing(workspace: Workspace, browser: Any) -> None:
    with served(workspace, free_port()) as (address, _):
        window = Window(browser)
        page = window.open(address)
        page.click(".cell >> nth=0")
        wait_for_image(page)
        image = shown_id(page)
        page.keyboard.press("1")
        page.keyboard.press("x")
        page.close()
        wait_until(lambda: "first.corrected" in labels.label_runs(workspace.labels))
    assert row(workspace, image, "head")["status"] == "absent"


def test_with_the_keyboard_alone(workspace: Workspace, browser: Any) -> None:
    with served(workspace, free_port()) as (address, _):
        window = Window(browser)
        page = window.open(address + "&sort=path")
        page.wait_for_selector(".cell image")
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "grid":
                break
        page.keyboard.press("ArrowRight")
        page.keyboard.press(" ")
        assert page.locator("#selected").inner_text() == "1 selected"
        page.keyboard.press("Escape")
        page.keyboard.press("Enter")
        wait_for_image(page)
        first = shown_id(page)
        page.keyboard.press("2")  # two actions for an absent part
        page.keyboard.press("x")
        page.wait_for_selector(".part:has-text('absent')")
        page.keyboard.press("b")  # no: a new box, moved and resized
        until(page, "document.querySelectorAll('#stage .box').length === 3")
        for key in ("ArrowDown", "ArrowDown", "Shift+ArrowRight"):
            page.keyboard.press(key)
        wait_until(lambda: row(workspace, first, "upper_body")["x_max"] == 0.85 * W + 1)
        assert row(workspace, first, "upper_body")["y_min"] == pytest.approx(0.2 * H + 2)
        page.keyboard.press("Enter")  # one action: accept and next
        until(page, f"!location.pathname.endsWith('{first}')")
        second = shown_id(page)
        assert {tuple(row(workspace, first, part)["flags"]) for part in ("head", "legs")} == {("accepted",)}
        page.keyboard.press("p")
        until(page, f"location.pathname.endsWith('{first}')")
        page.keyboard.press("n")
        until(page, f"location.pathname.endsWith('{second}')")
        page.keyboard.press("Escape")
        page.wait_for_selector("#grid")
        assert window.said == []


def test_no_page_has_a_serious_fault_or_is_wider_than_a_phone(workspace: Workspace, browser: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    images = labels.newest_labels(workspace.labels, "first", "walkers").to_pylist()
    from tests.labeler.review.conftest import write_labels

    write_labels(workspace, [LabelRow(**{**one, "label_run": "second", "x_min": 9.0})
                             for one in images if one["part"] == "head"])  # fmt: skip
    port = free_port()
    with served(workspace, port, "walkers", "--label-run", "first") as (address, _):
        for width in (1280, 390):
            window = Window(browser, width=width)
            window.open(address)
            for path in ("/", "/compare", "/summary", f"/image/{images[0]['image_id']}", "/?q=nonsense+at+all"):
                page = window.open(f"http://127.0.0.1:{port}{path}")
                page.wait_for_load_state("networkidle")
                if path.startswith("/image"):
                    page.keyboard.press("1")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, path
                found = Axe().run(page)
                serious = [
                    (fault["id"], [node["html"][:120] for node in fault["nodes"]])
                    for fault in found.response["violations"]
                    if fault["impact"] in ("serious", "critical")
                ]
                assert not serious, (path, width)
            assert window.said == []


def test_twenty_thousand_images(tmp_path: Path, browser: Any) -> None:
    place = Workspace(tmp_path / "data", tmp_path / "runs")
    write_crowd(place, 20_000)
    with served(place, free_port(), "crowd") as (address, _):
        window = Window(browser, width=1400)
        page = window.open(address)
        assert page.locator("#total").inner_text() == "20,000"
        height = page.evaluate("document.documentElement.scrollHeight")
        for share in (0, 0.001, 0.5, 0.9, 1):
            page.evaluate(f"scrollTo(0, {int(share * height)})")
            until(page, HOLES + " === 0")
            assert page.evaluate("document.querySelectorAll('.cell').length") < 400, "only what is near the window"
        page.keyboard.press("Home")
        page.focus("#grid")
        page.keyboard.press("End")
        until(page, HOLES + " === 0")
        assert page.locator(".cell.active").get_attribute("aria-posinset") == "20000"
        assert window.said == []


# cells in the window whose picture is not there
HOLES = """[...document.querySelectorAll('.cell')].filter(cell => {
  const place = cell.getBoundingClientRect();
  return place.bottom > 0 && place.top < innerHeight && !cell.classList.contains('there');
}).length + Math.max(0, 8 - document.querySelectorAll('.cell').length)"""


def write_crowd(workspace: Workspace, count: int) -> None:
    """Small images of one data set, with boxes; manifest and labels are written as a scan and a run would."""
    folder = workspace.data_root / "crowd"
    folder.mkdir(parents=True)
    (folder / "dataset.yaml").write_text('layout: pattern\npattern: "{identity}_c{camera}.bmp"\nsplit: train\n')
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        path = folder / f"{number:05d}_c{number % 4}.bmp"
        Image.fromarray(rng.integers(0, 255, (16, 8, 3), np.uint8)).resize((32, 64)).save(path)
        status = path.stat()
        rows.append(
            ManifestRow(
                dataset="crowd", split="train", path=path.name, image_id=image_id_of(path.read_bytes()), width=32,
                height=64, identity=number, camera=number % 4, size_bytes=status.st_size,
                modified_ns=status.st_mtime_ns,
            )
        )  # fmt: skip
    write_manifest(rows, workspace.manifest("crowd"))
    write_record(workspace.labels, "first", {"engine": "local", "parts": list(PARTS)})
    answer = {"space": "original_pixels", "engine": "local", "model": "m", "prompt_version": "p", "attempts": 1}
    made = [
        part_row(image, part, [0.7 * value for value in BOXES[part][:3]] + [0.6 * BOXES[part][3]], label_run="first",
                 status=LabelStatus.OK, **answer)
        for image in rows
        for part in PARTS
    ]  # fmt: skip
    write_label_table(to_table(made, LABEL_SCHEMA), label_folder(workspace.labels, "first", "crowd", "train"))
