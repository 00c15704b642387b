"""Tiny models served by the real vLLM, and real crops (REID_SHARED; generated pedestrians where there are none)."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from pipelines.synthetic import generate_dataset
from shared.images import image_id_of
from shared.schemas import ManifestRow
from tests.vllm.processes import NO_ENVIRONMENT, SERVED, Server, make_checkpoint, tiny_vllm

HERE = Path(__file__).parent
REAL = Path(os.environ.get("REID_SHARED", "../shared")).resolve() / "datasets"
SETS = ("VIPeR", "GRID", "CAVIAR4REID", "i-LIDS", "3DPeS", "PRID2011")  # from 29 to 300 pixels wide
PER_SET = 35
PICTURES = (".bmp", ".jpeg", ".jpg", ".png")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if NO_ENVIRONMENT:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=NO_ENVIRONMENT))


@pytest.fixture(scope="module", params=SERVED)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(family, tmp_path_factory.mktemp("checkpoint") / family)


@pytest.fixture(scope="module")
def vllm(family: str, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tiny_vllm(family, checkpoint, tmp_path_factory.mktemp("log") / "vllm.log") as server:
        yield server


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ManifestRow]]:
    """(folder, rows) of at least 200 crops of many sizes, as a data set `crops`."""
    root = REAL
    files = [
        path
        for name in SETS
        for path in islice((p for p in sorted((REAL / name).rglob("*")) if p.suffix in PICTURES), PER_SET)
    ]
    if not files:
        root = generate_dataset(
            tmp_path_factory.mktemp("generated"),
            "campus",
            train_identities=27,
            test_identities=0,
            cameras=2,
            images_per_camera=4,
            seed=0,
            workers=2,
        )
        files = sorted(root.rglob("*.jpg"))
    rows = {row.image_id: row for row in (_row(path, root) for path in files)}
    assert len(rows) >= 200
    return root, list(rows.values())


def _row(path: Path, root: Path) -> ManifestRow:
    content = path.read_bytes()
    with Image.open(path) as image:
        width, height = image.size
    return ManifestRow(
        dataset="crops",
        split="all",
        path=str(path.relative_to(root)),
        image_id=image_id_of(content),
        width=width,
        height=height,
        identity=1,
        camera=0,
        size_bytes=len(content),
        modified_ns=0,
    )
