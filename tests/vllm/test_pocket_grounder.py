"""The shipped grounder gives the same boxes through the real vLLM, asked by a Ray cluster too, and in this process."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("transformers", reason="transformers (extra `local`) is not installed")

from labeler.annotation.annotate import annotate
from labeler.engines.local_transformers_model import LocalModel
from labeler.grounding.prompts import PromptMode
from labeler.pocket import CHECKPOINT as POCKET_GROUNDER
from labeler.settings import Settings, load_settings
from pipelines.recipes.grounder.scoring import predict_boxes
from shared.geometry import Box, clipped, iou
from shared.labels import label_shards, newest_labels, read_labels
from shared.schemas import LabelStatus
from tests.vllm.processes import SERVED, Server, labelling_service, tiny_vllm
from tests.vllm.test_real_vllm import OPTIONS

pytestmark = pytest.mark.skipif(
    not (POCKET_GROUNDER / "model.safetensors").exists(),
    reason="no pocket grounder: python -m pipelines train-grounder",
)
FAMILY = "qwen2.5-vl"
BATCH = 16


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    with tiny_vllm(FAMILY, POCKET_GROUNDER, log, "--dtype", "float32") as server:  # as in this process
        yield server


@pytest.mark.parametrize("mode", ["joint", "per_part"])
def test_vllm_and_this_process_give_the_same_boxes(served: Server, crops, mode: PromptMode, tmp_path: Path) -> None:
    root, manifest = crops
    with labelling_service(served.url, FAMILY, tmp_path / "service.log", prompt_mode=mode, max_attempts="1") as service:
        annotate(manifest, root, "crops", tmp_path / "labels", "r", url=service.url, options=OPTIONS)
    rows = {(row.image_id, row.part): row for row in read_labels(label_shards(tmp_path / "labels"))}
    local = LocalModel.load(Settings(model=str(POCKET_GROUNDER), device="cpu", dtype="float32"))
    overlaps, same_status, answers = [], 0, 0
    for start in range(0, len(manifest), BATCH):
        batch = manifest[start : start + BATCH]
        images = [Image.open(io.BytesIO((root / row.path).read_bytes())).convert("RGB") for row in batch]
        for row, found in zip(batch, predict_boxes(local, images, mode), strict=True):
            for part, (status, box) in found.items():
                label = rows[row.image_id, part]
                answers += 1
                same_status += status == label.status
                if box and label.status == LabelStatus.OK:
                    inside = clipped(box, row.width, row.height)
                    overlaps.append(iou(inside, Box(label.x_min, label.y_min, label.x_max, label.y_max)))
    assert len(manifest) >= 200 and len(overlaps) > answers // 2
    assert sum(overlaps) / len(overlaps) >= 0.98
    assert same_status / answers >= 0.98


def test_actors_of_a_cluster_get_the_rows_of_the_annotator(served: Server, crops, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'dgreid[ray]'")
    root, manifest = crops
    chosen = manifest[:: len(manifest) // 20][:20]
    settings = load_settings(
        engine="vllm_server", upstream_url=served.url, model=SERVED[FAMILY], ray_min_actors=2, ray_cpus=0.25
    )
    tables = []
    for name, options in (("here", OPTIONS), ("on_ray", replace(OPTIONS, cluster="local"))):
        summary = annotate(chosen, root, "crops", tmp_path / name, "r", settings=settings, options=options)
        assert (summary.images, summary.done_now) == (20, 20)
        assert summary.completion_tokens, "the model was not asked"
        tables.append(newest_labels(tmp_path / name, "r", "crops").drop_columns("created_at").to_pylist())
    assert tables[0] == tables[1]
    assert {row["status"] for row in tables[0]} >= {LabelStatus.OK}
