"""The second look: a model that looks agrees with itself in the mirror, one that recites does not."""

import math
from pathlib import Path

import pytest

from labeler.annotation.annotate import annotate
from labeler.annotation.client import InProcessClient
from labeler.engines.body_prior import BodyPrior
from labeler.engines.vllm_server import VllmServer
from labeler.grounding.answers import PartAnswer
from labeler.grounding.engine import EngineAnswer, EngineDownError, EngineUnfitError, PartOutcome
from labeler.grounding.ground import ground_image
from labeler.grounding.second_look import agreement
from labeler.quality import run_query
from labeler.settings import load_settings
from shared.errors import ConfigError
from shared.geometry import Box, iou
from shared.labels import connect, label_shards, read_labels
from shared.schemas import PARTS, LabelStatus

ASIDE = {"head": Box(2, 6, 20, 30), "upper_body": Box(1, 34, 30, 72), "legs": Box(4, 76, 30, 122)}  # left of the middle


class Scripted(BodyPrior):
    """Answers with one box per image asked, in turn; None is "not visible", an exception is raised."""

    def __init__(self, *answers: Box | str | Exception | None) -> None:
        self.answers, self.asked = list(answers), 0

    async def ground(self, image, parts, attempt):
        answer = self.answers[self.asked]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        if answer is None or isinstance(answer, str):
            outcome = PartOutcome(LabelStatus.ABSENT if answer is None else LabelStatus.UNPARSEABLE, raw_text="said")
        else:
            outcome = PartOutcome(LabelStatus.OK, tuple(answer), answer)
        return EngineAnswer(dict.fromkeys(parts, outcome), "pixels", prompt_tokens=5, completion_tokens=2)


async def agreement_of(paint, *answers: object) -> float | None:
    engine = Scripted(*answers)
    answer = await ground_image(engine, paint(), ["head"], max_pixels=10**6, max_attempts=1, second_look=["head"])
    assert engine.asked == len(answers)
    return answer.parts[0].agreement


async def test_a_model_that_looks_agrees_with_itself(stand_in, paint) -> None:
    server = stand_in()
    engine = VllmServer.from_settings(load_settings(engine="vllm_server", model=server.model), server.transport)
    looked = {"max_pixels": 10**6, "max_attempts": 1, "second_look": ["head", "legs"]}
    answer = await ground_image(engine, paint(boxes=ASIDE), PARTS, **looked)
    await engine.close()
    by_part = {row.part: row for row in answer.parts}
    assert by_part["head"].agreement > 0.9 and by_part["legs"].agreement > 0.9
    assert by_part["upper_body"].agreement is None  # not asked to look twice
    assert by_part["head"].box == pytest.approx(ASIDE["head"], abs=1.5)  # the first answer stands
    assert '"upper_body"' not in server.payloads[-1]["messages"][0]["content"][1]["text"]


async def test_a_model_that_recites_does_not(paint) -> None:
    box = Box(0, 10, 30, 40)  # the same in both images: mapped back it lies on the other side
    assert await agreement_of(paint, box, box) == 0.0
    half = Box(16, 10, 64, 40)
    assert await agreement_of(paint, half, half) == pytest.approx(iou(half, Box(0, 10, 48, 40)))


async def test_what_can_be_compared(paint) -> None:
    box = Box(10, 10, 54, 40)
    assert await agreement_of(paint, box, box) == 1.0
    assert await agreement_of(paint, box, None) == 0.0 == await agreement_of(paint, None, box)
    assert await agreement_of(paint, None, None) is None
    assert await agreement_of(paint, box, "noise") is None
    assert await agreement_of(paint, box, Box(0, 0, 64, 128)) is None  # calibration refuses the whole image
    assert await agreement_of(paint, box, EngineDownError("gone", fix="-")) is None
    assert await agreement_of(paint, "noise") is None  # nothing to compare: not even asked


async def test_a_second_look_can_stop_the_run_but_not_spoil_the_first(paint) -> None:
    box = Box(10, 10, 54, 40)
    settings = {"max_pixels": 10**6, "max_attempts": 1, "second_look": ["head"]}
    with pytest.raises(EngineUnfitError):
        await ground_image(Scripted(box, EngineUnfitError("resized", fix="-")), paint(), ["head"], **settings)
    answer = await ground_image(Scripted(box, box), paint(), ["head"], **settings)
    assert (answer.prompt_tokens, answer.completion_tokens) == (10, 4)


def test_agreement_is_never_over_one() -> None:
    box = (0.1, 0.7, 0.3, 1.1)
    for width in range(1, 200):
        scale = [value * width for value in box]
        first = PartAnswer(part="head", status=LabelStatus.OK, box=tuple(scale))
        second = PartOutcome(LabelStatus.OK, image_box=Box(width - scale[2], scale[1], width - scale[0], scale[3]))
        value = agreement(first, second, width, 2 * width)
        assert value is None or (value <= 1.0 and math.isclose(value, 1.0))


async def test_sided_parts_are_not_compared(tmp_path: Path, paint) -> None:
    parts = tmp_path / "parts.yaml"
    parts.write_text("left_arm: left arm")
    settings = load_settings(second_look=True, parts_file=parts)
    engine = Scripted(*[Box(10, 10, 54, 40)] * 2)
    async with InProcessClient(settings, engine) as client:
        (answer,) = await client.ground([paint()], ["head", "left_arm"])
    assert [row.agreement for row in answer.parts] == [1.0, None]


def test_it_is_a_column_a_query_and_a_property_of_the_run(make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(4)
    labels = tmp_path / "labels"
    summary = annotate(manifest, root, "toy", labels, settings=load_settings(second_look=True))
    assert summary.label_run == "body_prior-ccp-medians-second-look"
    rows = read_labels(label_shards(labels))
    for row in rows:  # the prior does not look: it disagrees by as much as it is askew
        box = Box(row.x_min, row.y_min, row.x_max, row.y_max)
        flipped = Box(64 - row.x_max, row.y_min, 64 - row.x_min, row.y_max)
        assert row.agreement == pytest.approx(iou(box, flipped))
    lines = run_query(connect(labels=label_shards(labels)), "agreement").to_pylist()
    assert [(line["part"], line["compared"]) for line in lines] == [("head", 4), ("legs", 4), ("upper_body", 4)]
    heads = [row.agreement for row in rows if row.part == "head"]
    assert lines[0]["mean_agreement"] == pytest.approx(sum(heads) / 4, abs=1e-4)
    with pytest.raises(ConfigError, match="second_look"):
        annotate(manifest, root, "toy", labels, summary.label_run, settings=load_settings())
