"""Paths in foreign files: whole, partial, encoded, prefixed by an upload; ambiguous ones are refused."""

import pytest

from labeler.exchange.foreign_json import NotUnderstoodError
from labeler.exchange.image_paths import ImagePaths
from tests.rows import manifest_row

PATHS = (
    "query/1 é.png",
    "query/2.png",
    "gallery/2.png",
    "deep/query/2.png",
    "query/a%20b.png",
    "query/a b.png",
    "query/3+4 (5).jpg",
    "query/deadbeef-6.png",
    "query/6.png",
    "q/7.png",
    "root.png",
)


ROWS = [manifest_row(number, path=path, split="query") for number, path in enumerate(PATHS)]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("query/1 é.png", "query/1 é.png"),
        ("query/1 e\u0301.png", "query/1 é.png"),  # decomposed, as macOS writes it
        ("./query/1 é.png", "query/1 é.png"),
        ("/home/x/toy/query/1 é.png", "query/1 é.png"),
        ("C:\\data\\toy\\query\\1 é.png", "query/1 é.png"),
        ("images/1 é.png", "query/1 é.png"),  # a tool's own folder: the name is unique
        ("1 é.png", "query/1 é.png"),
        ("query/1%20%C3%A9.png", "query/1 é.png"),
        ("/data/local-files/?d=query/1%20%C3%A9.png", "query/1 é.png"),
        ("/data/local-files/?d=toy%2Fquery%2F1+%C3%A9.png", "query/1 é.png"),
        ("http://host:8080/data/local-files/?d=toy/query/1 é.png", "query/1 é.png"),
        ("https://bucket.example/toy/query/1%20%C3%A9.png?X-Sign=a%2Fb&d=", "query/1 é.png"),
        ("s3://bucket/toy/query/1 é.png", "query/1 é.png"),
        ("/data/upload/3/3f2a1b7c-1_é.png", "query/1 é.png"),
        ("3f2a1b7c-root.png", "root.png"),
        ("/data/upload/3/3f2a1b7c-34_5.jpg", "query/3+4 (5).jpg"),
        ("query/a%20b.png", "query/a%20b.png"),  # what a file is really called goes first
        ("query/a b.png", "query/a b.png"),
        ("?d=query/3%2B4%20%285%29.jpg", "query/3+4 (5).jpg"),
        ("?d=query/3+4 (5).jpg", "query/3+4 (5).jpg"),
        ("gallery/2.png", "gallery/2.png"),
        ("/x/deep/query/2.png", "deep/query/2.png"),
        ("/x/query/2.png", "query/2.png"),
        ("query/deadbeef-6.png", "query/deadbeef-6.png"),
        ("0badcafe-6.png", "query/6.png"),
        ("8.png", None),
        ("gallery/1 é.png", None),  # that folder is the data set's, and has no such image
        ("/x/toy/gallery/1 é.png", None),
        ("gallery/images/1 é.png", "query/1 é.png"),
        ("query/", None),
        ("", None),
        ("http://[", None),
        ("%ff%fe", None),
    ],
)
def test_a_path_finds_its_image(given: str, meant: str | None) -> None:
    found = ImagePaths(ROWS).find(given)
    assert (found and found.path) == meant


@pytest.mark.parametrize("given", ["2.png", "data/2.png", "/data/upload/1/3f2a1b7c-2.png", "http://h/2.png?x=1"])
def test_what_could_be_several_images_is_refused(given: str) -> None:
    with pytest.raises(NotUnderstoodError, match=r"ambiguous path: query/2.png or gallery/2.png"):
        ImagePaths(ROWS).find(given)


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (["query/2.png", "https://cdn/9f8a.png"], "query/2.png"),
        (["https://cdn/9f8a.png", "query/2.png"], "query/2.png"),
        (["2.png", "/datasets/deep/query/2.png"], "deep/query/2.png"),
        (["query/2.png", "2.png"], "query/2.png"),
        (["8.png", "9.png"], None),
    ],
)
def test_names_of_one_image_find_it_together(names: list[str], meant: str | None) -> None:
    found = ImagePaths(ROWS).find_named(names)
    assert (found and found.path) == meant


def test_names_of_two_images_are_refused() -> None:
    with pytest.raises(NotUnderstoodError, match=r"called both query/2.png and q/7.png"):
        ImagePaths(ROWS).find_named(["query/2.png", "q/7.png"])
    with pytest.raises(NotUnderstoodError, match="ambiguous path"):
        ImagePaths(ROWS).find_named(["2.png", "9.png"])


def test_copies_of_one_image_are_one_image() -> None:
    found = ImagePaths([manifest_row(1, path="a/1.png"), manifest_row(1, path="b/1.png")]).find("1.png")
    assert found is not None and found.image_id == f"{1:016x}"
