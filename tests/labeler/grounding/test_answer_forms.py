"""Answers in every form we know of: a part gets its own box, or the answer is named unreadable; never another's box."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeler.engines.token_scores import box_scores
from labeler.grounding.parsing.parse import READ_LIMIT, parse_answer
from labeler.grounding.vocabulary import SHARED
from shared.geometry import Box
from shared.schemas import PARTS, LabelStatus
from tests.labeler.grounding.answer_forms import Form, counts, forms

NUMBERS = {"head": (10, 20, 60, 70), "upper_body": (5, 72, 90, 150), "legs": (12, 152, 80, 290)}
OTHER = (33, 44, 55, 66)


@pytest.mark.parametrize("form", forms(), ids=lambda form: form.text[:40])
def test_every_form_is_read_as_it_says(form: Form) -> None:
    assert form.verdict() in ("right", "named"), form.parsed()


def test_the_collection_is_large_and_no_box_is_wrong() -> None:
    found = counts()
    assert sum(found.values()) >= 120 and found["wrong"] == 0 and found["right"] >= 75


# --- generated answers

WORDS = {
    "head": ["head", "Head", "head of the man", "the man's head", "HEAD"],
    "upper_body": ["upper body", "upper_body", "torso", "Upper-Body of the man", "his upper body"],
    "legs": ["legs", "Legs", "lower body", "both legs of the man", "legs_of_the_man"],
}
OTHERS = ["person", "hat on the head", "Kopf", "left leg", "headphones", "bag next to the legs", "full body", ""]
QUOTES = [('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"), ("「", "」"), ("", ""), ("`", "`")]
LABEL_KEYS = ["label", "category", "class", "description", "part", "name", "what"]
BOX_KEYS = ["bbox_2d", "bbox", "box", "coordinates", "where"]


@st.composite
def generated(draw: st.DrawFn) -> tuple[str, dict[str, tuple[int, ...]]]:
    """An answer with an entry for each part, in a random form, sometimes with a character missing."""
    order = draw(st.permutations([*PARTS, "other"][: draw(st.sampled_from([3, 4]))]))
    numbers = {**NUMBERS, "other": OTHER}
    words = {part: draw(st.sampled_from(WORDS.get(part, OTHERS))) for part in order}
    left, right = draw(st.sampled_from(QUOTES))
    mixed = draw(st.booleans())
    box_first = draw(st.booleans())
    opened, closed = draw(st.sampled_from([("[", "]"), ("(", ")"), ("[[", "]]")]))
    boxes = {part: opened + ",".join(map(str, numbers[part])) + closed for part in order}
    label_key, box_key = draw(st.sampled_from(LABEL_KEYS)), draw(st.sampled_from(BOX_KEYS))
    kind = draw(st.sampled_from(["entries", "keyed", "lines", "words", "table", "yaml"]))
    entries = []
    for part in order:
        first = draw(st.booleans()) if mixed else box_first
        if kind == "entries":
            fields = [f"{left}{label_key}{right}: {left}{words[part]}{right}", f"{left}{box_key}{right}: {boxes[part]}"]
            entries.append("{" + ", ".join(fields[::-1] if first else fields) + draw(st.sampled_from(["}", ",}"])))
        elif kind == "keyed":
            entries.append(f"{left}{words[part]}{right}: {boxes[part]}")
        elif kind == "table":
            cells = [words[part], boxes[part]]
            entries.append("| " + " | ".join(cells[::-1] if first else cells) + " |")
        elif kind == "yaml":
            fields = [f"{label_key}: {words[part]}", f"{box_key}: {boxes[part]}"]
            entries.append("- " + "\n  ".join(fields[::-1] if first else fields))
        else:
            sign = draw(st.sampled_from([": ", " ", " is at ", " - "]))
            entries.append(f"{boxes[part]}{sign}{words[part]}" if first else f"{words[part]}{sign}{boxes[part]}")
    join = {"entries": ", ", "keyed": ", ", "words": draw(st.sampled_from([", ", "; ", " and ", " "]))}.get(kind, "\n")
    text = join.join(entries)
    if kind == "entries":
        text = draw(st.sampled_from(["[%s]", '{"n": 3, "objects": [%s]}', "%s", "```json\n[%s]\n```", "[%s"])) % text
    elif kind == "keyed":
        text = draw(st.sampled_from(["{%s}", "{%s", "%s", '{"person": {%s}}'])) % text
    text = draw(st.sampled_from(["", "Here are the boxes:\n", "The head, upper body and legs.\n", "head\n"])) + text
    if draw(st.integers(0, 3)) == 0 and text:
        cut = draw(st.integers(0, len(text) - 1))
        if not text[cut].isdigit():
            text = text[:cut] + text[cut + 1 :]
    return text, numbers


@settings(max_examples=600, deadline=None)
@given(generated(), st.sampled_from([PARTS, *((part,) for part in PARTS)]))
def test_no_part_ever_gets_the_box_of_another(answer: tuple[str, dict[str, tuple[int, ...]]], asked) -> None:
    text, numbers = answer
    for part, outcome in parse_answer(text, "stop", asked).items():
        assert outcome.status != LabelStatus.ABSENT
        assert outcome.box is None or tuple(outcome.box) == numbers[part], (text, part)


@pytest.mark.parametrize("order", list(itertools.permutations(PARTS)))
@pytest.mark.parametrize("box_first", [True, False])
@pytest.mark.parametrize("wrapper", ["[%s]", '{"n":3,"objects":[%s]}', "%s", "```json\n[%s,]\n```"])
def test_labelled_boxes_are_read_in_any_order(order, box_first: bool, wrapper: str) -> None:
    entries = []
    for part in order:
        fields = [f"'label': '{WORDS[part][2]}'", f"'bbox_2d': {list(NUMBERS[part])}"]
        entries.append("{" + ", ".join(fields[::-1] if box_first else fields) + "}")
    parsed = parse_answer(wrapper % ", ".join(entries), "stop", PARTS)
    assert {part: tuple(outcome.box or ()) for part, outcome in parsed.items()} == NUMBERS


# --- unknown words, stated sizes

SAYS_NOTHING = ("think", "reasoning", "null", "None", '""', "[]", '"model"', "id", "know if", "person")


def clear_forms() -> list[Form]:
    """Answers that are read without a doubt and hold nothing in which a word may be without meaning: drafts, members
    without a value, names of models and files, the entries of other things."""
    return [
        form
        for form in forms()
        if all(one.box and not one.flags for one in form.parsed().values())
        and not any(word in form.text for word in SAYS_NOTHING)
        and (len(form.want) > 1 or sum(form.text.count(part) for part in PARTS) < 2)
    ]


def test_an_unknown_word_anywhere_is_a_doubt() -> None:
    known = clear_forms()
    assert len(known) > 100
    for form in known[::5]:
        for place in range(len(form.text) + 1):
            around = form.text[max(0, place - 1) : place + 1]
            if len(around) == 2 and around.isalnum():
                continue  # inside a word
            said = f"{form.text[:place]} zorblax {form.text[place:]}"
            parsed = parse_answer(said, "stop", tuple(form.want), form.vocabulary, size=form.size)
            assert any(not one.box or one.flags for one in parsed.values()), said


ALL = '"head":[10,20,60,70],"upper_body":[5,72,90,150],"legs":[12,152,80,290]'


@pytest.mark.parametrize(
    ("size", "said", "clear"),
    [
        ((280, 560), '{"image_width":280,"image_height":560,%s}', True),
        ((280, 560), '{"image_size":[280,560],%s}', True),
        ((280, 560), '{"resolution":"280 x 560",%s}', True),
        ((280, 560), '{"image":{"width":280,"height":560},"boxes":{%s}}', True),
        ((280, 560), "The image is 280x560: {%s}", True),
        ((1000, 1000), '{"image_width":1000,"image_height":1000,%s}', True),  # thousandths
        ((1000, 1000), '{"image_width":280,"image_height":560,%s}', False),
        ((280, 560), '{"image_width":64,"image_height":128,%s}', False),
        ((280, 560), '{"image_width":560,"image_height":280,%s}', False),
        ((280, 560), '{"image_height":1080,%s}', False),
        ((280, 560), '{"input_size":"448x448",%s}', False),
        ((280, 560), '{"image":{"width":64,"height":128},"boxes":{%s}}', False),
        ((280, 560), "The image is 64x128: {%s}", False),
        (None, '{"image_width":280,"image_height":560,%s}', False),
    ],
)
def test_a_stated_size_is_the_one_of_the_coordinates_or_a_doubt(size, said: str, clear: bool) -> None:
    parsed = parse_answer(said % ALL, "stop", PARTS, size=size)
    assert {part: tuple(outcome.box or ()) for part, outcome in parsed.items()} == NUMBERS  # never rescaled
    assert {outcome.flags for outcome in parsed.values()} == {() if clear else ("ambiguous",)}


# --- one rule for answers that can be read in several ways


@pytest.mark.parametrize(
    ("text", "box", "flags"),
    [
        ('{"head":[100,200,600,700],"head":[100,200,600,701]}', Box(100, 200, 600, 700), ("ambiguous",)),
        ('{"head":[100,200,600,700],"head":[100,200,600,700]}', Box(100, 200, 600, 700), ()),
        ('{"head":[100,200,600,700],"head":[300,200,600,700]}', None, ()),
        ('{"head":[100,200,600,700],"head":null}', None, ()),
        ("[10,20,60,20,60,70,10,70]", Box(10, 20, 60, 70), ("ambiguous",)),
        ("[10,70,10,20,60,20,60,70]", Box(10, 20, 60, 70), ("ambiguous",)),
        ("[1,2,3,4,5,6,7,8]", None, ()),
        ("[1,2,3,4] Final answer: [5,6,7,8]", Box(5, 6, 7, 8), ("ambiguous",)),
    ],
)
def test_ambiguous_answers(text: str, box: Box | None, flags: tuple[str, ...]) -> None:
    parsed = parse_answer(text, "stop", ("head",))["head"]
    assert (parsed.box, parsed.flags) == (box, flags)
    assert parsed.status == (LabelStatus.OK if box else LabelStatus.UNPARSEABLE)


# --- scores


def logprobs_of(pieces: list[tuple[str, float]]) -> dict:
    return {"content": [{"token": token, "logprob": logprob} for token, logprob in pieces]}


def pieces_of(text: str, sure: dict[tuple[int, ...], float]) -> list[tuple[str, float]]:
    """One token per character; the digits of each box have its log-probability."""
    pieces = [[character, -9.0] for character in text]
    for numbers, logprob in sure.items():
        written = ",".join(map(str, numbers))
        for index in range(text.rindex(written), text.rindex(written) + len(written)):
            pieces[index][1] = logprob
    return [(token, logprob) for token, logprob in pieces]


@pytest.mark.parametrize(
    "form",
    [
        '{{"head":[{A}],"upper_body":[{B}],"legs":[{C}]}}',
        '[{{"bbox_2d":[{A}],"label":"head"}},{{"bbox_2d":[{B}],"label":"torso"}},{{"bbox_2d":[{C}],"label":"legs"}}]',
        "[{{'bbox_2d':[{C}],'label':'legs'}},{{'label':'head','bbox_2d':[{A}]}},{{'bbox_2d':[{B}],'label':'torso'}},]",
        "[{A}] head\n[{B}] upper body\n[{C}] legs",
        "1. head of the man: [{A}]\n2. upper body of the man: [{B}]\n3. legs of the man: [{C}]",
        '<think>head [{B}], legs [{A}]</think>{{"head":[{A}],"upper_body":[{B}],"legs":[{C}]}}',
        "| 1 | [{A}] | head |\n| 2 | [{B}] | upper body |\n| 3 | [{C}] | legs |",
    ],
)
def test_each_box_has_its_own_probability(form: str) -> None:
    written = {key: ",".join(map(str, NUMBERS[part])) for key, part in zip("ABC", PARTS, strict=True)}
    text = form.format(**written)
    sure = dict(zip(NUMBERS.values(), (-0.1, -0.2, -0.3), strict=True))
    scores = box_scores(logprobs_of(pieces_of(text, sure)), PARTS, SHARED)
    assert scores == {part: pytest.approx(math.exp(sure[NUMBERS[part]])) for part in PARTS}


def test_equal_boxes_of_two_parts_have_their_own_probabilities() -> None:
    text = '[{"bbox_2d":[1,2,3,4],"label":"head"},{"bbox_2d":[1,2,3,4],"label":"legs"}]'
    half = text.index("legs") - 30
    pieces = [(character, -1.0 if index < half else -2.0) for index, character in enumerate(text)]
    scores = box_scores(logprobs_of(pieces), ["head", "legs"], SHARED)
    assert scores == {"head": pytest.approx(math.exp(-1)), "legs": pytest.approx(math.exp(-2))}


def test_no_score_for_a_box_that_is_not_taken() -> None:
    text = '[{"bbox_2d":[1,2,3,4],"label":"person"}]'
    assert box_scores(logprobs_of([(text, -1.0)]), ["head"], SHARED) == {}


# --- hostile texts

HOSTILE = [
    *("[", "{", "(", "[]", "{}", "()", '{"a":', "[[1,2,3,4],", "'", '"', "`", "/*", "//", "\\", "\\u0000", "-", "not "),
    *("lambda:", "1+", "2**", "a.", "1,", "1_", "|", "| head | 1 | 2 | 3 | 4 |\n", "head: [1,2,3,4]\n", "head "),
    *("no head ", "the head is not visible ", "final answer: [1,2,3,4] ", "<answer>", "<think>", "</think>", "<|"),
    *("person 1 ", "［", "head,1,2,3,4\n", "\t", "```json\n", "\0", "\ud800", "sorry, but ", "{'head':[1,2,3,4],}"),
    *("[/*x*/1,2,]", "{a:1,}"),
]


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.parametrize("around", ["%s", "[%s]", '{"head": %s}', "head: %s [1,2,3,4]"])
@pytest.mark.parametrize("asked", [PARTS, PARTS[:1]])
def test_hostile_texts_end_without_an_exception(unit: str, around: str, asked: tuple[str, ...]) -> None:
    text = around % (unit * (READ_LIMIT // len(unit) + 1))[: READ_LIMIT - 40]
    parsed = parse_answer(text, "stop", asked)
    assert set(parsed) == set(asked)
    box_scores({"content": [{"token": text[:2000], "logprob": -1.0}]}, asked, SHARED)
