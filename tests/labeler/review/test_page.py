"""The page's interface without a browser: who is let in, what is served, how questions become images."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from labeler.review.app import create_app
from labeler.review.pictures import Pictures
from labeler.review.tables import LabelTables
from shared.labels import label_folder, write_label_shard
from shared.schemas import LabelStatus, ManifestRow
from shared.workspace import Workspace
from tests.labeler.review.conftest import row_of, write_labels

Make = Callable[[int], tuple[Workspace, list[ManifestRow]]]
ADDRESS, TOKEN = "http://127.0.0.1:8310", "right-token"


@pytest.fixture
def place(make_workspace: Make) -> tuple[Workspace, list[ManifestRow]]:
    workspace, images = make_workspace(4)
    rows = [
        row_of(images[0], "legs", status=LabelStatus.UNPARSEABLE, raw_text="<script>alert(1)</script>", attempts=4),
        row_of(images[1], "head", flags=("order",), score=0.3),
    ]
    write_label_shard(rows, label_folder(workspace.labels, "first", "walkers", "train"))
    return workspace, images


@pytest.fixture
def client(place: tuple[Workspace, list[ManifestRow]]) -> Iterator[TestClient]:
    workspace, _ = place
    tables = LabelTables(workspace, ["walkers"], "first")
    pictures = Pictures({"walkers": workspace.data_root / "walkers"}, workspace.runs_root / "review")
    app = create_app(tables, pictures, reviewer="anna", token=TOKEN, port=8310)
    with TestClient(app, base_url=ADDRESS, follow_redirects=False) as client:
        yield client


@pytest.fixture
def inside(client: TestClient) -> TestClient:
    answer = client.get("/", params={"token": TOKEN, "sort": "path"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/?sort=path")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    return client


@pytest.mark.parametrize("path", ["/", "/summary", "/api/ids", "/thumb/0123456789abcdef.jpg", "/static/grid.js"])
def test_without_the_token_nothing_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 403
    assert client.get(path, params={"token": "wrong"}).status_code == 403
    assert client.get(path, cookies={"dgreid_review_8310": "wrong"}).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8310", "evil.example:8310", ""])
def test_a_wrong_host_is_refused(inside: TestClient, host: str) -> None:
    assert inside.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
def test_another_origin_is_refused(
    inside: TestClient, place: tuple[Workspace, list[ManifestRow]], headers: dict[str, str], method: str
) -> None:
    workspace, images = place
    path = f"/api/images/{images[0].image_id}{'/undo' if method == 'POST' else ''}"
    assert inside.request(method, path, headers=headers, json={"accept": True}).status_code == 403
    assert not (workspace.labels / "first.corrected").exists()


@pytest.mark.parametrize(
    "name",
    [
        "0123456789abcdef",
        "..%2f..%2fdata%2fwalkers%2f000_c1",
        "../../data/walkers/000_c1",
        "000_c1",
        "http:%2f%2fevil.example%2fx",
        "%00",
        "é",
    ],
)
@pytest.mark.parametrize("kind", ["thumb", "full"])
def test_only_images_of_the_data_set_are_served(inside: TestClient, kind: str, name: str) -> None:
    assert inside.get(f"/{kind}/{name}.jpg").status_code == 404
    assert inside.get(f"/image/{name}").status_code == 404
    assert inside.get(f"/api/images/{name}").status_code == 404


def test_pictures_are_made_again_and_kept(
    inside: TestClient, place: tuple[Workspace, list[ManifestRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, images = place
    answer = inside.get(f"/thumb/{images[0].image_id}.jpg")
    assert answer.headers["content-type"] == "image/jpeg" and answer.content[:2] == b"\xff\xd8"
    file = workspace.data_root / "walkers" / images[0].path
    assert answer.content != file.read_bytes()
    file.unlink()
    assert inside.get(f"/thumb/{images[0].image_id}.jpg").content == answer.content
    assert inside.get(f"/full/{images[0].image_id}.jpg").status_code == 404


def test_a_file_that_was_exchanged_is_not_shown(
    inside: TestClient, place: tuple[Workspace, list[ManifestRow]], tmp_path: Path
) -> None:
    workspace, images = place
    Image.new("RGB", (40, 100), "red").save(workspace.data_root / "walkers" / images[2].path)
    assert inside.get(f"/full/{images[2].image_id}.jpg").status_code == 404


def test_headers_let_nothing_in_from_elsewhere(inside: TestClient) -> None:
    answer = inside.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    text = answer.text
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
    assert "<style" not in text and " style=" not in text


def test_what_a_model_answered_is_text(inside: TestClient, place: tuple[Workspace, list[ManifestRow]]) -> None:
    _, images = place
    found = inside.get(f"/api/images/{images[0].image_id}").json()
    assert found["parts"]["legs"]["raw_text"] == "<script>alert(1)</script>"
    assert found["parts"]["legs"]["attempts"] == 4
    assert "<script>alert" not in inside.get("/", params={"q": "<script>alert(1)</script>"}).text


def ids(inside: TestClient, **asked: object) -> list[str]:
    return list(inside.get("/api/ids", params=asked).json())  # type: ignore[arg-type]


def test_queries_facets_and_orders(inside: TestClient, place: tuple[Workspace, list[ManifestRow]]) -> None:
    _, images = place
    by_path = [image.image_id for image in images]
    assert ids(inside, sort="path") == by_path
    assert ids(inside)[:2] == by_path[:2], "the failed part first, then the broken order"
    assert ids(inside, status="unparseable") == [by_path[0]]
    assert ids(inside, flag="order") == [by_path[1]]
    assert ids(inside, score="0.3 to 0.4") == [by_path[1]]
    assert ids(inside, camera="2", sort="path") == by_path[1::2]
    assert ids(inside, camera=["1", "2"], identity="3", sort="path") == by_path[6:]
    assert ids(inside, part="head", status="unparseable") == []
    assert sorted(ids(inside, sort="sample")) == sorted(by_path) != ids(inside, sort="sample")
    wanted = "select path from manifest order by path desc"
    assert ids(inside, q=wanted) == by_path[::-1]
    assert ids(inside, q="select dataset, path from manifest where camera = 1 order by path") == by_path[::2]
    assert ids(inside, q="worst_images")[0] == by_path[0]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("select 1", "names no images"),
        ("selec image_id", "DuckDB says"),
        ("drop table labels", "not a single SELECT"),
        ("select image_id from '/etc/passwd'", "DuckDB says"),
        ("select content as image_id from read_text('/etc/passwd')", "no other file"),
        ("nosuch", "no canned query"),
    ],
)
def test_a_query_that_cannot_be_shown_says_why(inside: TestClient, query: str, words: str) -> None:
    answer = inside.get("/", params={"q": query})
    assert answer.status_code == 200 and words in answer.text
    assert inside.get("/api/ids", params={"q": query}).status_code == 422


def test_facet_counts_are_those_of_the_grid(inside: TestClient, place: tuple[Workspace, list[ManifestRow]]) -> None:
    workspace, _ = place
    from labeler.review.tables import Asked

    tables = LabelTables(workspace, ["walkers"], "first")
    for facet, values in tables.facets(Asked(facets={"camera": ("1",)})).items():
        for value, count, _ in values:
            asked = {"camera": ("1",)} | {facet: (value,)}
            assert len(tables.find(Asked(facets=asked))[1]) == count, (facet, value)


def test_corrections_and_undo_over_the_interface(
    inside: TestClient, place: tuple[Workspace, list[ManifestRow]]
) -> None:
    _, images = place
    path = f"/api/images/{images[1].image_id}"
    before = inside.get(path, params={"sort": "path"}).json()
    assert (before["at"], before["next"], before["previous"]) == (1, images[2].image_id, images[0].image_id)
    decision = {"version": before["version"], "parts": {"head": [11, 3, 31, 21]}, "accept": True}
    after = inside.put(path, json=decision, params={"sort": "path"}).json()
    assert after["parts"]["head"]["box"] == [11, 3, 31, 21] and after["written"] == 3
    assert after["run"] == "first.corrected" and after["next"] == images[2].image_id
    assert inside.put(path, json=decision).status_code == 409
    assert inside.put(path, json={"parts": {"head": [1, 1, 1, 1]}}).status_code == 422
    assert inside.put(path, json={"parts": {"head": ["a", 1, 1, 1]}}).status_code == 422
    assert inside.put(path, json={"surprise": 1}).status_code == 422
    undone = inside.post(f"{path}/undo").json()
    assert undone["parts"]["head"]["box"] == before["parts"]["head"]["box"]
    assert undone["parts"]["head"]["flags"] == ["order"]


def test_the_list_stays_while_it_is_gone_through(
    inside: TestClient, place: tuple[Workspace, list[ManifestRow]]
) -> None:
    _, images = place
    asked = {"review": "open", "sort": "path"}
    inside.get("/", params=asked)
    path = f"/api/images/{images[2].image_id}"
    after = inside.put(path, json={"accept": True}, params=asked).json()
    assert (after["at"], after["next"]) == (2, images[3].image_id)
    assert inside.get("/", params=asked).text.count(images[2].image_id) == 0, "the grid shows what is open now"


def test_many_at_once(inside: TestClient, place: tuple[Workspace, list[ManifestRow]]) -> None:
    _, images = place
    everyone = [image.image_id for image in images]
    answer = inside.post("/api/many", json={"image_ids": everyone}).json()
    assert answer == {"changed": 7, "left": [images[0].image_id]}
    assert inside.post("/api/many", json={"image_ids": everyone[:2], "absent": "legs"}).json()["changed"] == 2
    assert ids(inside, status="absent", sort="path") == everyone[:2]
    assert inside.post("/api/many/undo", json={"image_ids": everyone[:2]}).json() == {"undone": 2}
    assert inside.post("/api/many", json={"image_ids": ["nobody"]}).status_code == 404


@pytest.mark.parametrize("item", [b"1,", b'"?",', b"[],", b'"' + b"f" * 64 + b'",'])
@pytest.mark.parametrize("path", ["/api/many", "/api/pick", "/api/many/undo", "/api/images/0123456789abcdef"])
def test_bodies_of_more_than_a_page_sends_are_not_parsed(inside: TestClient, path: str, item: bytes) -> None:
    content = b'{"image_ids":[' + item * (16 * 2**20 // len(item)) + b'"a"]}'
    method = "PUT" if "images" in path else "POST"
    answer = inside.request(method, path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413 and "choose fewer images" in answer.text
    most = b'{"image_ids":[' + b",".join(b'"%064x"' % n for n in range(50_000)) + b"]}"
    picked = inside.post("/api/pick", content=most, headers={"content-type": "application/json"})
    assert picked.status_code == 200, "as many as a page may send"


def test_two_runs_side_by_side(inside: TestClient, place: tuple[Workspace, list[ManifestRow]]) -> None:
    workspace, images = place
    assert "one label run only" in inside.get("/compare").text
    write_labels(workspace, [row_of(images[3], part, run="second", engine="other") for part in ("head", "legs")])
    text = inside.get("/compare").text
    assert "1.000" in text and "second" in text


def test_the_summary_opens_the_grid(inside: TestClient, place: tuple[Workspace, list[ManifestRow]]) -> None:
    text = inside.get("/summary").text
    assert "status=unparseable" in text and "nothing of the random sample was looked at" in text
    order = ids(inside, sort="sample")
    for image in order[:3]:
        inside.put(f"/api/images/{image}", json={"parts": {"head": None, "legs": [8, 52, 32, 98]}, "accept": True})
    text = inside.get("/summary").text
    assert "33.3 %" in text and "from 9 boxes of 3 images, 3 wrong" in text.replace(" from 8", " from 9")


def test_picked_images_are_a_grid(inside: TestClient, place: tuple[Workspace, list[ManifestRow]]) -> None:
    _, images = place
    chosen = [images[5].image_id, images[1].image_id]
    picked = inside.post("/api/pick", json={"image_ids": [*chosen, "nobody"]}).json()["picked"]
    assert ids(inside, picked=picked) == chosen
    assert inside.get("/", params={"picked": "gone"}).status_code == 200
