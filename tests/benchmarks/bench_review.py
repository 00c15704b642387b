"""The review page's grid of 20,000 images in Chromium: time to the first paint, and holes while scrolling.

    .venv/bin/python -m tests.benchmarks.bench_review [images]

First paint is the browser's own first-contentful-paint; "pictures" is when every tile in the window has its picture.
Scrolling moves on by 2,000 pixels a second (two windows) for 8 seconds, without and then with thumbnails on disk; after
every step it counts the tiles in the window that have no picture yet.
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from shared.workspace import Workspace
from tests.pipelines.test_review_page import CHROMIUM, HOLES, free_port, served, write_crowd

SEEN = """[...document.querySelectorAll('.cell')].filter(cell => { const place = cell.getBoundingClientRect();
  return place.bottom > 0 && place.top < innerHeight; }).length"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        workspace = Workspace(Path(folder) / "data", Path(folder) / "runs")
        write_crowd(workspace, count)
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with served(workspace, free_port(), "crowd") as (address, _):
            context = browser.new_context(viewport={"width": 1400, "height": 900})
            page = context.new_page()
            page.goto(address)
            for turn in ("no thumbnails yet", "thumbnails on disk", "thumbnails on disk"):
                page.goto(address.split("?")[0])
                while page.evaluate(HOLES) or not page.evaluate(PAINT):
                    page.wait_for_timeout(20)
                pictures = page.evaluate("performance.now()")
                print(f"{turn}: first paint {page.evaluate(PAINT):.0f} ms, pictures by {pictures:.0f} ms", flush=True)
                page.mouse.move(800, 500)
                holes, seen, worst = 0, 0, 0
                for _ in range(80):
                    page.mouse.wheel(0, 200)
                    page.wait_for_timeout(100)
                    now = page.evaluate(HOLES)
                    holes, seen, worst = holes + now, seen + page.evaluate(SEEN), max(worst, now)
                print(f"{turn}: {holes} of {seen} tiles without a picture while scrolling, at most {worst} at once",
                      flush=True)  # fmt: skip
                page.evaluate("scrollTo(0, 0)")
        browser.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
