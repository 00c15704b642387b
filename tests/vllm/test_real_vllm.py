"""Service and annotator against the real vLLM: every answer parses, tokens count, a killed server costs nothing."""

import json
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from labeler.annotation import client
from labeler.annotation.annotate import AnnotateOptions, annotate
from labeler.annotation.client import ServiceError
from labeler.grounding.coordinates import FAMILIES, Sent, sent_size
from labeler.grounding.prompts import Prompts
from labeler.grounding.vocabulary import load_vocabulary
from shared.labels import label_shards, read_labels
from shared.schemas import PARTS, LabelStatus
from tests.vllm.processes import VLLM_PYTHON, labelling_service

ANSWERED = {LabelStatus.OK, LabelStatus.ABSENT, LabelStatus.INVALID_BOX}  # random weights may well box nothing
OPTIONS = AnnotateOptions(
    connections=4,
    batch_images=4,
    shard_rows=90,
    failed_share_limit=1.0,
    transport_attempts=300,  # a restarted server is worth waiting for
)
GUIDED_ONLY = {"max_attempts": "1"}  # the last of several attempts is asked without a schema


def rows_of(labels: Path):
    return read_labels(label_shards(labels))


def exactly_once(labels: Path, manifest) -> bool:
    counts = Counter((row.image_id, row.part) for row in rows_of(labels))
    return counts == {(row.image_id, part): 1 for row in manifest for part in PARTS}


def processor_counts(checkpoint: Path, family: str, mode: str, manifest) -> int:
    """Prompt tokens of all questions about all images, by the checkpoint's own processor."""
    prompts = Prompts.choose(FAMILIES[family], mode, load_vocabulary(None))
    asked: Counter[tuple[str, int, int]] = Counter()
    for row in manifest:
        width, height = sent_size(row.width, row.height, FAMILIES[family])
        sent = Sent(row.width, row.height, width, height, FAMILIES[family].space)
        for question in prompts.questions(PARTS, sent, with_schema=True):
            asked[question.text, width, height] += 1
    counted = subprocess.run(
        [VLLM_PYTHON, Path(__file__).with_name("count_tokens.py"), checkpoint],
        input=json.dumps(list(asked)),
        capture_output=True,
        text=True,
    )
    assert counted.returncode == 0, counted.stderr[-2000:]
    return sum(count * times for count, times in zip(json.loads(counted.stdout), asked.values(), strict=True))


@pytest.mark.parametrize("mode", ["joint", "per_part"])
def test_every_answer_parses_and_every_box_lies_inside(vllm, family, checkpoint, crops, mode, tmp_path: Path) -> None:
    root, manifest = crops
    with labelling_service(vllm.url, family, tmp_path / "service.log", prompt_mode=mode, **GUIDED_ONLY) as service:
        summary = annotate(manifest, root, "crops", tmp_path / "labels", "r", url=service.url, options=OPTIONS)
    labels = rows_of(tmp_path / "labels")
    assert summary.images == len(manifest) >= 200
    assert exactly_once(tmp_path / "labels", manifest)
    assert {row.status for row in labels} <= ANSWERED, Counter((row.status, row.raw_text) for row in labels)
    boxes = [row for row in labels if row.status == LabelStatus.OK]
    assert len(boxes) > len(labels) // 2
    assert all(0 <= row.x_min < row.x_max <= row.width and 0 <= row.y_min < row.y_max <= row.height for row in boxes)
    assert summary.prompt_tokens == processor_counts(checkpoint, family, mode, manifest)


def test_a_killed_server_costs_nothing(vllm, family, crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LONGEST_PAUSE_S", 2.0)
    root, manifest = crops
    labels = tmp_path / "labels"
    with (
        labelling_service(vllm.url, family, tmp_path / "service.log", **GUIDED_ONLY) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        run = pool.submit(annotate, manifest, root, "crops", labels, "r", url=service.url, options=OPTIONS)
        while not label_shards(labels):
            assert not run.done(), run.result()
            time.sleep(0.05)
        vllm.kill()
        before = len(rows_of(labels))
        assert not run.done() and 0 < before < len(manifest) * len(PARTS)
        vllm.start()
        vllm.wait_ready(600)
        summary = run.result(timeout=900)
    assert summary.images == len(manifest) and exactly_once(labels, manifest)
    assert {row.status for row in rows_of(labels)} <= ANSWERED, summary.failed


def test_another_familys_resize_is_found_out(vllm, family, crops, tmp_path: Path) -> None:
    root, manifest = crops
    other = {"qwen2.5-vl": "qwen3-vl", "qwen3-vl": "qwen2.5-vl"}[family]
    with (
        labelling_service(vllm.url, family, tmp_path / "service.log", family=other) as service,
        pytest.raises(ServiceError, match=r"counted \d+ image tokens .* where \d+ were sent"),
    ):
        annotate(manifest, root, "crops", tmp_path / "labels", "r", url=service.url, options=OPTIONS)
    assert not label_shards(tmp_path / "labels")
