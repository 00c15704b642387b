"""Every text gives one outcome per part; absent, refused, cut and unreadable never look alike."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeler.grounding.parsing.parse import READ_LIMIT, kept_text, parse_answer
from shared.geometry import Box
from shared.schemas import PARTS, RAW_TEXT_LIMIT, LabelStatus

A, B, C = Box(1, 2, 3, 4), Box(5, 6, 7, 8), Box(9, 10, 11, 12)
OK, ABSENT, UNPARSEABLE = LabelStatus.OK, LabelStatus.ABSENT, LabelStatus.UNPARSEABLE
QWEN_LIST = (
    '[{"bbox_2d":[1,2,3,4],"label":"Head"},{"bbox_2d":[5,6,7,8],"label":"upper body"},'
    '{"bbox_2d":[9,10,11,12],"label":"legs"}]'
)


@pytest.mark.parametrize(
    "text",
    [
        '{"head":[1,2,3,4],"upper_body":[5,6,7,8],"legs":[9,10,11,12]}',
        '```json\n{"head":[1,2,3,4],"upper_body":[5,6,7,8],"legs":[9,10,11,12]}\n```',
        'Here: {"head":[[1,2,3,4]],"upper body":{"bbox":[5,6,7,8]},"Legs":{"x1":9,"y1":10,"x2":11,"y2":12}} ok?',
        '{"boxes":{"head":[1,2,3,4],"upper_body":[5.0,6,7,8],"legs":"[9, 10, 11, 12]"}}',
        QWEN_LIST,
        f"{QWEN_LIST}\n{QWEN_LIST}",
        "[[1,2,3,4],[5,6,7,8],[9,10,11,12]]",
        "head: (1,2),(3,4); upper body: [5, 6, 7, 8]; legs: (9, 10, 11, 12)",
    ],
)
def test_all_forms_of_one_answer(text: str) -> None:
    assert [parse_answer(text, "stop", PARTS)[part].box for part in PARTS] == [A, B, C]


@pytest.mark.parametrize(
    "text",
    [
        "[[1,2,3,4]]",
        '{"head":[1,2,3,4]}',
        '{"bbox_2d":[1,2,3,4]}',
        "<|box_start|>(1,2),(3,4)<|box_end|>",
        '"[1,2,3,4]"',
        "[[001,002,003,004]]",
        "It is at [[001,002,003,004]].",
    ],
)
def test_forms_of_an_answer_about_one_part(text: str) -> None:
    assert parse_answer(text, "stop", ("head",))["head"].box == A


def test_corners_stay_as_answered() -> None:
    assert parse_answer('{"head":[3,4,1,2]}', "stop", ("head",))["head"].box == Box(3, 4, 1, 2)


@pytest.mark.parametrize(
    ("text", "finish", "status"),
    [
        ('{"head":null}', "stop", ABSENT),
        ('{"head":[]}', "stop", ABSENT),
        ('{"head":"not visible"}', "stop", ABSENT),
        ("[]", "stop", ABSENT),
        ("The head is not visible in this image.", "stop", ABSENT),
        ("There is no visible head here", "stop", ABSENT),
        ('{"head":"none"}', "stop", ABSENT),
        ("no heading", "stop", UNPARSEABLE),
        ("the leg\u017f and the head: [1, 2]", "stop", UNPARSEABLE),  # a letter that is an s when case is ignored
        ("[[045,100,200]]", "stop", UNPARSEABLE),
        ("[[001,002,003,004;011,012,013,014]]", "stop", UNPARSEABLE),  # two boxes
        ("I'm sorry, I cannot help with that.", "stop", LabelStatus.REFUSED),
        ('{"head":[1,2,3,4]}', "content_filter", LabelStatus.REFUSED),
        ('{"head":[1,2,3,4]}', "length", LabelStatus.TRUNCATED),
        ('{"head":[1,2,3,4]}', "abort", UNPARSEABLE),
        ('{"head":[1,2,3,4]}', None, UNPARSEABLE),
        ('{"head":[1,2,3]}', "stop", UNPARSEABLE),
        ('{"head":[1,2,3,4,5]}', "stop", UNPARSEABLE),
        ('{"head":[1,2,NaN,4]}', "stop", UNPARSEABLE),
        ('{"head":[true,2,3,4]}', "stop", UNPARSEABLE),
        ('{"head":[1,2,3,1e999]}', "stop", UNPARSEABLE),
        (f'{{"head":[1,2,3,{"9" * 400}]}}', "stop", UNPARSEABLE),
        ("", "stop", UNPARSEABLE),
        (None, "stop", UNPARSEABLE),
        ("[" * 100_000, "stop", UNPARSEABLE),
        ("9" * 10_000, "stop", UNPARSEABLE),
        ("[" * 900 + "]" * 900, "stop", UNPARSEABLE),
    ],
)
def test_named_failures_for_one_part(text: str | None, finish: str | None, status: LabelStatus) -> None:
    parsed = parse_answer(text, finish, ("head",))["head"]
    assert (parsed.status, parsed.box) == (status, None)


def test_what_is_too_long_is_not_read_in_part() -> None:
    text = '{"head":[1,2,3,4]}'
    assert parse_answer(text + " " * 10_000, "stop", ("head",))["head"].status == OK
    assert parse_answer(f"<think>{'x' * 50_000}</think>{text}", "stop", ("head",))["head"].status == OK
    corrected = f"{text}\n{'.' * READ_LIMIT}\nCorrected answer: " + '{"head":[50,60,70,80]}'
    assert parse_answer(corrected, "stop", ("head",))["head"].status == UNPARSEABLE


def test_a_part_that_is_left_out_is_asked_again_not_absent() -> None:
    parsed = parse_answer('{"head":[1,2,3,4],"legs":null}', "stop", PARTS)
    assert [parsed[part].status for part in PARTS] == [OK, UNPARSEABLE, ABSENT]


def test_deep_nesting_about_all_parts() -> None:
    assert parse_answer("[" * 900 + "]" * 900, "stop", PARTS)["head"].status == UNPARSEABLE


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(PARTS),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from([*PARTS, "bbox_2d", "label", "x1", "boxes"]), inner, max_size=4)
    ),
    max_leaves=20,
)
ANSWERS = (
    st.text()
    | st.text(alphabet='[]{}(),:"0123456789. headlgs`\n', max_size=200)
    | st.tuples(VALUES.map(json.dumps), st.integers(0, 200)).map(lambda pair: pair[0][: pair[1]])
    | VALUES.map(json.dumps)
)


@given(text=ANSWERS, finish=st.sampled_from(["stop", "length", "abort"]), parts=st.sampled_from([PARTS, PARTS[:1]]))
def test_total(text: str, finish: str, parts: tuple[str, ...]) -> None:
    parsed = parse_answer(text, finish, parts)
    assert set(parsed) == set(parts)
    for outcome in parsed.values():
        assert (outcome.box is not None) == (outcome.status == OK)
        assert finish == "stop" or outcome.status != OK


@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 4), min_size=3, max_size=3))
def test_what_was_written_is_read(boxes: list[tuple[int, int, int, int]]) -> None:
    text = json.dumps(dict(zip(PARTS, map(list, boxes), strict=True)))
    assert [tuple(parse_answer(text, "stop", PARTS)[part].box) for part in PARTS] == boxes


def test_raw_text_is_cut() -> None:
    assert len(kept_text("x" * 10_000)) == RAW_TEXT_LIMIT
