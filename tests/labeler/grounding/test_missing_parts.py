"""What becomes of a part that is not visible, and that every mark of calibration can be counted in SQL."""

from pathlib import Path

import pytest

from labeler.annotation.annotate import AnnotateOptions, annotate, annotate_with
from labeler.annotation.client import InProcessClient, ServiceError
from labeler.engines.body_prior import PROPORTIONS, BodyPrior
from labeler.engines.vllm_server import VllmServer
from labeler.grounding.engine import EngineAnswer, PartOutcome
from labeler.grounding.ground import FILLED, ground_image
from labeler.quality import run_query
from labeler.settings import load_settings
from shared.errors import ConfigError
from shared.geometry import Box, scaled
from shared.labels import connect, label_shards, read_labels
from shared.schemas import PARTS, LabelStatus

HEAD, BODY, LEGS = Box(20, 6, 44, 30), Box(10, 34, 54, 72), Box(16, 76, 48, 122)


class Says(BodyPrior):
    """Answers every image with the same boxes; None is "not visible"."""

    def __init__(self, **boxes: Box | None) -> None:
        self.boxes = boxes

    async def ground(self, image, parts, attempt):
        found = {}
        for part in parts:
            box = self.boxes[part]
            status = LabelStatus.OK if box else LabelStatus.ABSENT
            found[part] = PartOutcome(status, box and tuple(box), box, 0.9 if box else None, raw_text="as said")
        return EngineAnswer(found, "pixels")


async def answer_of(engine, content: bytes, policy: str):
    rules = {"max_pixels": 10**6, "max_attempts": 2, "missing_parts": policy}
    answer = await ground_image(engine, content, list(engine.boxes), **rules)
    return {row.part: row for row in answer.parts}


async def test_absent_stays_absent_with_its_text(paint) -> None:
    rows = await answer_of(Says(head=None, upper_body=BODY, legs=LEGS), paint(), "absent")
    assert rows["head"].status == LabelStatus.ABSENT and rows["head"].box is None and rows["head"].raw_text == "as said"
    assert rows["legs"].raw_text is None


async def test_filled_from_the_prior_and_flagged(paint) -> None:
    rows = await answer_of(Says(head=None, upper_body=BODY, legs=LEGS, bag=None), paint(48, 160), "prior")
    head = rows["head"]
    assert (head.status, head.score, head.flags) == (LabelStatus.OK, 0.0, (FILLED,))
    assert head.box == pytest.approx(scaled(PROPORTIONS["head"], 48, 160))
    assert head.raw_text == "as said" and head.raw_box is None
    assert rows["bag"].status == LabelStatus.ABSENT and rows["bag"].flags == ()  # the prior does not know bags
    assert (rows["legs"].score, rows["legs"].flags) == (0.9, ())


async def test_a_failure_is_never_filled(paint) -> None:
    rows = await answer_of(Says(head=Box(0, 0, 64, 128), upper_body=BODY, legs=LEGS), paint(), "prior")
    assert rows["head"].status == LabelStatus.INVALID_BOX and rows["head"].flags == ("whole_image",)
    assert rows["head"].raw_box == (0, 0, 64, 128) and rows["head"].box is None


async def test_a_filled_box_is_checked_against_the_others(paint) -> None:
    rows = await answer_of(Says(head=None, upper_body=Box(10, 2, 54, 12), legs=LEGS), paint(), "prior")
    assert rows["head"].flags == (FILLED, "order") and rows["upper_body"].flags == ("order",)


async def test_filling_does_not_make_a_blind_model_ready(paint) -> None:
    async with InProcessClient(load_settings(missing_parts="prior"), Says(**dict.fromkeys(PARTS))) as client:
        with pytest.raises(ServiceError, match="no box in the answer about the calibration image"):
            await client.wait_ready(0)


def test_the_policy_is_a_property_of_the_run(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(2)
    filled = annotate(manifest, root, "toy", tmp_path, settings=load_settings(missing_parts="prior"))
    assert filled.label_run == "body_prior-ccp-medians-filled"
    with pytest.raises(ConfigError, match="missing_parts"):
        annotate(manifest, root, "toy", tmp_path, filled.label_run, settings=load_settings())


async def test_everything_calibration_did_is_counted_in_sql(stand_in, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(3)
    server = stand_in()  # sends 280 x 560 for its 64 x 128
    answers = [
        '{"head":[105,26,175,114],"upper_body":[61,114,219,298],"legs":[79,298,201,534]}',  # of the calibration image
        '{"head":[190,30,90,130],"upper_body":[-90,150,230,310],"legs":[70,330,210,530]}',
        '{"head":[10,10,11,11],"upper_body":[0,0,280,560],"legs":null}',
        '{"head":[70,330,210,530],"upper_body":[44,150,236,310],"legs":[70,330,210,530]}',
    ]
    server._boxes = lambda payload: answers.pop(0) if payload["max_tokens"] > 1 else "{}"
    settings = load_settings(
        engine="vllm_server", model=server.model, missing_parts="prior", max_attempts=1, second_look=False
    )
    engine = VllmServer.from_settings(settings, server.transport)
    options = AnnotateOptions(connections=1, batch_images=1, failed_share_limit=1.0)
    async with InProcessClient(settings, engine, connections=1) as client:
        await annotate_with(client, manifest, root, "toy", tmp_path, "r", options)
    shards = label_shards(tmp_path)
    lines = run_query(connect(labels=shards), "flag_counts").to_pylist()
    counts = {(line["part"], line["flag"]): line["labels"] for line in lines}
    assert counts == {
        ("head", "reordered"): 1,
        ("upper_body", "clipped"): 1,
        ("head", "too_small"): 1,
        ("upper_body", "whole_image"): 1,
        ("legs", FILLED): 1,
        ("head", "duplicate"): 1,
        ("legs", "duplicate"): 1,
        ("head", "order"): 1,
        ("upper_body", "order"): 1,
    }
    by_status = {row.status for row in read_labels(shards)}
    assert by_status == {LabelStatus.OK, LabelStatus.INVALID_BOX}
    assert all(row.raw_box for row in read_labels(shards) if FILLED not in row.flags)
