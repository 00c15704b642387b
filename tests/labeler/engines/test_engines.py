"""The engines, alone and through grounding: painted boxes come back, every fault of a server has its name."""

import base64
import csv
import io
import json
import math
import os
import random
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from labeler.engines import build_engine
from labeler.engines.body_prior import PROPORTIONS, BodyPrior
from labeler.engines.token_scores import box_scores
from labeler.engines.vllm_server import VllmServer
from labeler.grounding.coordinates import FAMILIES, prepare
from labeler.grounding.engine import EngineDownError, EngineError, EngineSlowError
from labeler.grounding.ground import ground_image
from labeler.grounding.retry import Attempt
from labeler.grounding.vocabulary import SHARED
from labeler.service.readiness import TRUTH, calibration_image
from labeler.settings import load_settings
from shared.errors import ConfigError
from shared.geometry import Box, iou, scaled
from shared.schemas import PARTS, LabelStatus

SERVED = {
    "qwen2-vl": ("Qwen/Qwen2-VL-7B-Instruct", True),
    "qwen2.5-vl": ("Qwen/Qwen2.5-VL-7B-Instruct", False),
    "qwen3-vl": ("Qwen/Qwen3-VL-8B-Instruct", True),
    "cogvlm": ("THUDM/cogvlm-grounding-generalist-hf", True),
}
PART_TRUTH = Path(os.environ.get("REID_SHARED", "../shared")) / "datasets" / "part_truth" / "parts.csv"


def engine_of(server, **overrides) -> VllmServer:
    settings = load_settings(engine="vllm_server", model=server.model, **overrides)
    return VllmServer.from_settings(settings, server.transport)


async def ground(server, content: bytes, parts=PARTS, **overrides):
    engine = engine_of(server, **overrides)
    answer = await ground_image(engine, content, parts, max_pixels=10**6, max_attempts=4)
    await engine.close()
    return answer


@pytest.mark.parametrize(
    ("family", "mode"),
    [(family, mode) for family in FAMILIES for mode in ("joint", "per_part") if (family, mode) != ("cogvlm", "joint")],
)
@pytest.mark.parametrize("size", [(64, 128), (48, 128), (128, 256), (300, 900)])
async def test_painted_boxes_come_back(stand_in, painted, paint, family: str, mode: str, size) -> None:
    boxes = {part: Box(*map(round, scaled(box, size[0] / 64, size[1] / 128))) for part, box in painted.items()}
    server = stand_in(SERVED[family][0], thousandths=SERVED[family][1])
    answer = await ground(server, paint(*size, boxes), prompt_mode=mode, logprobs=True)
    assert len(server.payloads) == (1 if mode == "joint" else 3)
    for row in answer.parts:
        assert row.status == LabelStatus.OK and row.flags == ()
        assert row.box == pytest.approx(boxes[row.part], abs=1.5)
        assert row.score == pytest.approx(math.exp(-0.5))
        assert max(row.raw_box) <= (1000 if SERVED[family][1] else max(server.sizes[0]))
    assert answer.space.endswith("@{}x{}".format(*server.sizes[0]))
    assert answer.prompt_tokens == (57 + server.count(*server.sizes[0])) * len(server.payloads)


async def test_the_request_is_bounded_and_modern(stand_in, paint) -> None:
    server = stand_in()
    await ground(server, paint())
    (payload,) = server.payloads
    schema = payload["response_format"]["json_schema"]["schema"]
    assert schema["required"] == list(PARTS) and schema["additionalProperties"] is False
    box = schema["properties"]["legs"]["anyOf"][0]
    assert (box["minItems"], box["maxItems"], box["items"]["maximum"]) == (4, 4, 560)
    assert payload["max_tokens"] < 200 and payload["temperature"] == 0
    assert not any(key.startswith("guided_") for key in payload)


@pytest.mark.parametrize(("size", "sampling"), [((64, 128), "4:2:0"), ((150, 300), "4:4:4"), ((600, 1200), "4:4:4")])
async def test_colours_are_halved_only_where_enlarging_made_them_smooth(stand_in, size, sampling: str) -> None:
    noise = Image.frombytes("RGB", size, random.Random(0).randbytes(3 * size[0] * size[1]))  # the worst there is
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    server = stand_in()
    await ground(server, buffer.getvalue(), logprobs=False)
    url = server.payloads[0]["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))) as sent:
        assert ("4:4:4", "4:2:2", "4:2:0")[JpegImagePlugin.get_sampling(sent)] == sampling
        kept = prepare(noise, FAMILIES["qwen2.5-vl"])[0]
        error = np.abs(np.asarray(sent.convert("RGB"), float) - np.asarray(kept, float)).mean()
    assert error < 10, "levels of 255; with the other sampling the larger two are off by over 20, real crops by under 1"


async def test_only_failed_parts_are_asked_again_and_without_schema_at_last(stand_in, paint) -> None:
    server = stand_in()
    server.script = ["garbage", "refusal", "whole image", "good"]
    answer = await ground(server, paint())
    assert [row.status for row in answer.parts] == [LabelStatus.OK] * 3
    assert {row.attempts for row in answer.parts} == {4}
    assert ["response_format" in payload for payload in server.payloads] == [True, True, True, False]
    assert len({payload["temperature"] for payload in server.payloads}) == 4


async def test_absent_is_final_and_costs_one_question(stand_in, painted, paint) -> None:
    server = stand_in()
    answer = await ground(server, paint(boxes={part: painted[part] for part in ("head", "upper_body")}))
    assert [row.status for row in answer.parts] == [LabelStatus.OK, LabelStatus.OK, LabelStatus.ABSENT]
    assert len(server.payloads) == 1


@pytest.mark.parametrize(
    ("behaviour", "status", "kept"),
    [
        ("garbage", LabelStatus.UNPARSEABLE, "%$ 12 boxes [["),
        ("refusal", LabelStatus.REFUSED, "I'm sorry"),
        ("length", LabelStatus.TRUNCATED, '{"head":'),
        ("whole image", LabelStatus.INVALID_BOX, "[0,0,1000,1000]"),
    ],
)
async def test_useless_answers_end_with_their_name_and_text(stand_in, paint, behaviour, status, kept) -> None:
    server = stand_in()
    server.always = behaviour
    answer = await ground(server, paint())
    assert [row.status for row in answer.parts] == [status] * 3
    assert {row.attempts for row in answer.parts} == {4}
    assert all(row.box is None and kept in row.raw_text for row in answer.parts)


@pytest.mark.parametrize("behaviour", ["500", "hang", "cut", "no json", "wrong schema"])
async def test_transport_faults_pass_unseen(stand_in, paint, no_pauses, behaviour: str) -> None:
    server = stand_in()
    server.script = [behaviour, behaviour]
    answer = await ground(server, paint())
    assert {(row.status, row.attempts) for row in answer.parts} == {(LabelStatus.OK, 1)}
    assert len(server.payloads) == 3


HUGE = 10**400
GOOD = {"message": {"content": '{"head":[1,2,30,40],"upper_body":null,"legs":null}'}, "finish_reason": "stop"}
NONSENSE = [
    *([], None, 7, "text", True, [GOOD], {}, {"error": {"message": "no"}}, {"choices": None}, {"choices": {}}),
    *({"choices": []}, {"choices": [None]}, {"choices": ["x"]}, {"choices": [{}]}, {"choices": [[GOOD]]}),
    *({"choices": [{"message": None}]}, {"choices": [{"message": "hello"}]}, {"choices": [{**GOOD, "message": [1]}]}),
    *({"choices": [{**GOOD, "message": {"content": one}}]} for one in (7, HUGE, [], {}, True, [{"type": "text"}])),
    *({"choices": [{**GOOD, "finish_reason": one}]} for one in (7, HUGE, [], {"stop": 1})),
]
ODD = [  # chat completions with nonsense beside the answer: the answer is read
    *({"choices": [GOOD], "usage": one} for one in (None, 3, [], {"prompt_tokens": "12"}, {"completion_tokens": HUGE})),
    *({"choices": [GOOD], "usage": {"prompt_tokens": one}} for one in (-3, 1.5, HUGE, True, [1])),
    *(
        {"choices": [{**GOOD, "logprobs": one}]}
        for one in (7, [], {"content": 3}, {"content": [1, None, {"token": 3}]})
    ),
    *(
        {"choices": [{**GOOD, "logprobs": {"content": [{"token": "1", "logprob": one}]}}]}
        for one in (HUGE, -HUGE, "x", None, [], float("nan"), float("-inf"), True)
    ),
    *({"choices": [{**GOOD, "message": {**GOOD["message"], "refusal": one}}]} for one in (None, 7, [], "", {})),
    *({"choices": [{**GOOD, "message": {**GOOD["message"], "reasoning_content": one}}]} for one in (7, [], {"a": 1})),
    {"choices": [GOOD, None], "id": HUGE, "created": "yesterday", "model": []},
]


@pytest.mark.parametrize("reply", NONSENSE, ids=lambda reply: repr(reply)[:40])
async def test_an_answer_of_another_shape_is_asked_for_again_and_named(
    stand_in, paint, no_pauses, caplog, reply
) -> None:
    server = stand_in()
    good = server._said

    def said(text: str, payload: dict, **more: str) -> httpx.Response:
        if broken and payload["max_tokens"] > 1:
            broken.pop()
            return httpx.Response(200, json=reply)
        return good(text, payload, **more)

    server._said = said
    broken = [1, 1]
    answer = await ground(server, paint())
    assert {row.status for row in answer.parts} == {LabelStatus.OK} and not broken
    broken = [1] * 99
    with pytest.raises(EngineDownError, match=r"not a chat completion \(|not a JSON object"):
        await ground(server, paint())
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("reply", ODD, ids=lambda reply: repr(reply)[-40:])
async def test_nonsense_beside_an_answer_changes_no_box(stand_in, paint, caplog, reply) -> None:
    server = stand_in()
    server.text_tokens = None
    server._said = lambda text, payload, **_: httpx.Response(200, content=json.dumps(reply))
    answer = await ground(server, paint(), logprobs=True)
    assert [row.status for row in answer.parts] == [LabelStatus.OK, LabelStatus.ABSENT, LabelStatus.ABSENT]
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(("behaviour", "error"), [("500", EngineDownError), ("hang", EngineSlowError)])
async def test_a_dead_server_is_said_to_be_dead(stand_in, paint, no_pauses, behaviour, error) -> None:
    server = stand_in()
    server.always = behaviour
    with pytest.raises(error):
        await ground(server, paint())
    assert len(server.payloads) == 3


async def test_a_refused_request_is_the_images_failure_and_not_repeated(stand_in, paint) -> None:
    server = stand_in()
    server.always = "400"
    answer = await ground(server, paint())
    assert {row.status for row in answer.parts} == {LabelStatus.ENGINE_ERROR}
    assert "prompt too long" in answer.error and not answer.retryable
    assert ["response_format" in payload for payload in server.payloads] == [True, False], "the schema may be why"


async def test_check_wants_the_model_listed(stand_in) -> None:
    server = stand_in()
    engine = engine_of(server)
    await engine.check()
    server.model = "another"
    with pytest.raises(EngineError, match="does not list"):
        await engine.check()


def test_the_local_engine_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if "local_transformers" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"dgreid\[local\]"):
        build_engine(load_settings(engine="local"))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("content", [None, "", " \n"])
@pytest.mark.parametrize(("finish", "status"), [("stop", LabelStatus.UNPARSEABLE), ("length", LabelStatus.TRUNCATED)])
async def test_an_answer_that_stands_in_the_reasoning_is_named(
    stand_in, paint, caplog, key: str, content: str | None, finish: str, status: LabelStatus
) -> None:
    server = stand_in()
    thought = '{"head":[1,2,30,40],"upper_body":[1,2,30,40],"legs":null}'

    def said(text: str, payload: dict, **_: str) -> httpx.Response:
        message = {"content": content, key: thought}
        return httpx.Response(200, json={"choices": [{"message": message, "finish_reason": finish}]})

    server.text_tokens = None
    server._said = said
    answer = await ground(server, paint())
    assert {(row.status, row.box, row.flags) for row in answer.parts} == {(status, None, ("reasoning_only",))}
    assert {row.raw_text for row in answer.parts} == {thought}
    assert "reasoning_content" in caplog.text


async def test_the_flag_of_a_doubtful_box_reaches_the_row(stand_in, paint) -> None:
    server = stand_in()
    server._boxes = lambda payload: "[[20,30,90,120],[40,150,230,310],[70,330,210,530]]"
    answer = await ground(server, paint())
    assert {(row.status, row.flags) for row in answer.parts} == {(LabelStatus.OK, ("ambiguous",))}


@pytest.mark.parametrize("stated", ["as sent", "original", "another"])
async def test_a_stated_size_is_compared_with_the_image_that_was_sent(stand_in, paint, stated: str) -> None:
    server = stand_in()
    first = await ground(server, paint())
    width, height = map(int, first.space.partition("@")[2].split("x"))
    assert first.space.startswith("sent_pixels") and (width, height) != (first.width, first.height)
    size = {"as sent": (width, height), "original": (first.width, first.height), "another": (1920, 1080)}[stated]
    boxes = '"head":[20,30,90,120],"upper_body":[40,150,230,310],"legs":[70,330,210,530]'
    server._boxes = lambda payload: f'{{"image_width":{size[0]},"image_height":{size[1]},{boxes}}}'
    answer = await ground(server, paint())
    assert {row.raw_box for row in answer.parts} >= {(20, 30, 90, 120)}
    assert {row.flags for row in answer.parts} == {() if stated == "as sent" else ("ambiguous",)}


def test_scores_come_from_the_boxs_own_digits() -> None:
    text = [
        ('{"', -9),
        ("head", -9),
        ('":[', -9),
        ("1", -1),
        (",", -9),
        ("2", -3),
        (",3,4]", -2),
        (',"legs":null}', -9),
    ]
    logprobs = {"content": [{"token": token, "logprob": logprob} for token, logprob in text]}
    assert box_scores(logprobs, ["head", "legs"], SHARED) == {"head": pytest.approx(math.exp(-2))}
    for beyond in (float("inf"), float("nan"), 0.5, 10**400, "-1", None, True):  # of any token: which one is not known
        for place in (1, 3, 7):
            damaged = [dict(item) for item in logprobs["content"]]
            damaged[place]["logprob"] = beyond
            assert box_scores({"content": damaged}, ["head", "legs"], SHARED) == {}, (beyond, place)
    for odd in (None, [], {"content": 3}, {"content": [{"token": 1}]}, {"content": [None]}):
        assert box_scores(odd, ["head"], SHARED) == {}


async def test_body_prior_says_what_it_is() -> None:
    image = Image.open(io.BytesIO(calibration_image()))
    answer = await BodyPrior().ground(image, [*PARTS, "bag"], Attempt())
    assert answer.parts["bag"].status == LabelStatus.ABSENT
    for part in PARTS:
        outcome = answer.parts[part]
        assert (outcome.score, outcome.flags) == (0.0, ("prior",))
        assert iou(outcome.image_box, TRUTH[part]) > 0.3


@pytest.mark.skipif(not PART_TRUTH.is_file(), reason="the part_truth set is not here (REID_SHARED)")
@pytest.mark.parametrize(("part", "expected"), [("head", 0.51), ("upper_body", 0.68), ("legs", 0.68)])
def test_body_prior_is_as_good_as_it_says(part: str, expected: float) -> None:
    with PART_TRUTH.open() as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == part]
    ious = [
        iou(
            scaled(PROPORTIONS[part], float(row["width"]), float(row["height"])),
            Box(*(float(row[key]) for key in ("x_min", "y_min", "x_max", "y_max"))),
        )
        for row in rows
    ]
    assert sum(ious) / len(ious) == pytest.approx(expected, abs=0.006)
