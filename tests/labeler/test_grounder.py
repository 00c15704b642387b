"""The Python API: boxes of a path, bytes, a PIL image or an array; bad files are statuses, bad calls UsageErrors."""

import asyncio
import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeler import AsyncGrounder, Grounder
from labeler.annotation import client as client_module
from labeler.annotation.client import ServiceError
from labeler.grounder import _content
from shared.errors import ConfigError, UsageError
from shared.geometry import Box
from shared.images import decode, image_id_of
from shared.schemas import PARTS, LabelStatus

ROOT = Path(__file__).parents[2]
LEGS = Box(0.195 * 64, 0.446 * 128, 0.788 * 64, 0.972 * 128)


def test_importing_labeler_loads_nothing_heavy() -> None:
    script = (
        "import sys, labeler\n"
        "assert {'torch', 'pydantic', 'httpx', 'numpy', 'PIL', 'fastapi'}.isdisjoint(sys.modules)\n"
        "from labeler import Grounder\n"
        "assert {'torch', 'transformers', 'fastapi', 'uvicorn'}.isdisjoint(sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    with pytest.raises(AttributeError, match="Grinder"):
        _ = sys.modules["labeler"].Grinder


def test_every_kind_of_input_gives_the_same_boxes(paint, tmp_path: Path) -> None:
    content = paint()
    (tmp_path / "person.png").write_bytes(content)
    image = Image.open(io.BytesIO(content))
    pixels = np.asarray(image)
    inputs = [tmp_path / "person.png", str(tmp_path / "person.png"), content, image, pixels, pixels[:, :, 0]]
    with Grounder() as grounder:
        assert grounder.parts == PARTS
        answers = grounder.ground(inputs)
        single = grounder.ground(content, parts=["legs"])
    for answer in answers:
        assert (answer.width, answer.height, answer.error) == (64, 128, "")
        assert answer.statuses == dict.fromkeys(PARTS, LabelStatus.OK) and answer.failure is None
        assert answer.boxes["legs"] == pytest.approx(LEGS) and isinstance(answer.boxes["legs"], Box)
    assert {answer.image_id for answer in answers[:3]} == {image_id_of(content)}
    assert list(single.boxes) == ["legs"]


def test_pixels_of_a_pil_image_are_as_in_a_file_but_not_turned() -> None:
    """What transparency hides does not come back, 16 bits are scaled, and boxes are of the image that was given."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.new("RGB", (64, 128)).save(turned, "JPEG", exif=exif)
    deep = Image.fromarray(np.full((128, 64), 0x8000, np.uint16))
    for image, pixel in ((Image.new("RGBA", (64, 128), (200, 100, 50, 0)), (0, 0, 0)), (deep, (128, 128, 128))):
        content = _content(image)
        assert isinstance(content, bytes) and decode(content).getpixel((9, 9)) == pixel
    content = _content(Image.open(turned))
    assert isinstance(content, bytes) and decode(content).size == (64, 128)


async def test_async(paint) -> None:
    images = [paint(height=128 + index) for index in range(40)]  # more than one batch
    async with AsyncGrounder() as grounder:
        many, one = await asyncio.gather(grounder.ground(images), grounder.ground(images[7]))
        assert await grounder.ground([]) == []
    assert [answer.height for answer in many] == [128 + index for index in range(40)]
    assert many[7] == one


def test_many_threads_share_a_grounder(paint) -> None:
    images = [paint(height=128 + index) for index in range(12)]
    with Grounder() as grounder, ThreadPoolExecutor(4) as threads:
        assert [answer.height for answer in threads.map(grounder.ground, images)] == list(range(128, 140))


def test_files_that_cannot_be_read_are_statuses(paint, tmp_path: Path) -> None:
    content = paint()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(content[:60])
    lazy = Image.open(io.BytesIO(content[: len(content) // 2]))  # its header is whole, its pixels are not
    hostile = [
        tmp_path / "absent.png",
        tmp_path,
        "\0",
        tmp_path / "text.jpg",
        tmp_path / "cut.png",
        b"",
        os.urandom(500),
        lazy,
        Image.new("RGB", (5000, 5000)),
    ]
    with Grounder() as grounder:
        *failed, good = grounder.ground([*hostile, content])
        (alone,) = grounder.ground([tmp_path / "absent.png"])
    for answer in [*failed, alone]:
        assert answer.statuses == dict.fromkeys(PARTS, LabelStatus.UNREADABLE), answer
        assert answer.error and not answer.boxes and answer.failure == LabelStatus.UNREADABLE
    assert failed[0].image_id == "" and "No such file" in failed[0].error
    assert "12000000 pixels" in failed[-1].error
    assert good.failure is None


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (None, "NoneType"),
        (7, "int"),
        ({"a": 1}, "dict"),
        (iter([b"x"]), "iterator"),
        ([b"x", [b"y"]], "image 1 is of type list"),
        ([b"x", None], "image 1"),
        (np.zeros((128, 64, 3)), "float64"),
        (np.zeros((128, 64, 4), np.uint8), r"\[128, 64, 4\]"),
        (np.zeros((0, 64, 3), np.uint8), r"\[0, 64, 3\]"),
        (np.zeros((2, 128, 64, 3), np.uint8), r"\[2, 128, 64, 3\]"),
    ],
)
def test_other_types_are_refused_by_name(image: object, named: str) -> None:
    with Grounder() as grounder, pytest.raises(UsageError, match=named):
        grounder.ground(image)


@pytest.mark.parametrize("parts", [["wing"], [], "legs"])
def test_unknown_parts_are_refused_with_the_known_ones(paint, parts: object) -> None:
    with Grounder() as grounder, pytest.raises(UsageError, match="head, upper_body, legs"):
        grounder.ground(paint(), parts=parts)


def test_wrong_arguments_are_refused_at_once(paint) -> None:
    with pytest.raises(UsageError, match="engine, model"):
        Grounder(url="http://127.0.0.1:1", model="m", engine="local")
    with pytest.raises(ConfigError, match="enigne"):
        Grounder(enigne="local")
    with pytest.raises(ConfigError, match="HTTP URL"):
        Grounder(url="localhost:8300")
    grounder = Grounder()
    for _ in range(2):
        with pytest.raises(UsageError, match="with Grounder"):
            grounder.ground(paint())
        with pytest.raises(UsageError, match="with Grounder"):
            _ = grounder.parts
        grounder.close()


def test_a_service_that_is_absent_is_an_error_and_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labeler.grounder.READY_TIMEOUT_S", 0.0)
    monkeypatch.setattr(client_module, "READY_PAUSE_S", 0.1)
    before = threading.active_count()
    with pytest.raises(ServiceError, match="not ready"), Grounder(url="http://127.0.0.1:1"):
        pass
    assert threading.active_count() == before
