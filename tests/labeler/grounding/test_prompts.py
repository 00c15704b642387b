"""What is asked: every word counts for the version, and a family is only asked what it can answer."""

import dataclasses

import pytest

from labeler.grounding.coordinates import FAMILIES, Sent
from labeler.grounding.prompts import Prompts
from labeler.grounding.vocabulary import SHARED, Vocabulary
from shared.errors import ConfigError
from shared.schemas import PARTS

QWEN2, QWEN25, COGVLM = FAMILIES["qwen2-vl"], FAMILIES["qwen2.5-vl"], FAMILIES["cogvlm"]
SENT = Sent(64, 128, 280, 560, "thousandths")


def test_the_version_changes_with_every_word() -> None:
    longer = {**SHARED.words, "bag": ("bag",)}
    versions = [
        Prompts.choose(family, mode, Vocabulary(words)).version
        for family, mode, words in [
            (QWEN2, "joint", SHARED.words),
            (QWEN25, "joint", SHARED.words),
            (QWEN2, "per_part", SHARED.words),
            (COGVLM, "per_part", SHARED.words),
            (QWEN2, "joint", {"head": ("head",)}),
            (QWEN2, "joint", {"head": ("skull",)}),
            (QWEN2, "joint", longer),
            (QWEN2, "joint", {**longer, "bag": ("bag", "sack")}),
        ]
    ]
    assert len(set(versions)) == len(versions)
    assert versions[0] == Prompts.choose(QWEN2, "joint", SHARED).version
    assert versions[0].startswith("joint-") and versions[3].startswith("per_part-")


def test_the_mode_is_the_cheapest_that_the_family_can_answer() -> None:
    assert Prompts.choose(QWEN2, None, SHARED).mode == "joint"
    assert Prompts.choose(COGVLM, None, SHARED).mode == "per_part"
    with pytest.raises(ConfigError, match="LABELER_PROMPT_MODE=per_part"):
        Prompts.choose(COGVLM, "joint", SHARED)


def test_cogvlm_is_asked_for_one_part_in_its_own_form() -> None:
    prompts = Prompts.choose(COGVLM, None, SHARED)
    asked = prompts.questions(PARTS, SENT, with_schema=True)
    assert [question.parts for question in asked] == [(part,) for part in PARTS]
    assert all("[[x0,y0,x1,y1]]" in question.text and question.schema is None for question in asked)
    assert "the upper body of the person" in asked[1].text and "JSON" not in asked[1].text


def test_an_added_part_is_asked_for_and_has_room_in_the_answer() -> None:
    vocabulary = Vocabulary({**SHARED.words, "bag": ("hand bag", "sack")})
    (short,) = Prompts.choose(QWEN2, "joint", SHARED).questions(PARTS, SENT, with_schema=True)
    (asked,) = Prompts.choose(QWEN2, "joint", vocabulary).questions(vocabulary.parts, SENT, with_schema=True)
    assert asked.parts == (*PARTS, "bag") and "hand bag" in asked.text and "sack" not in asked.text
    assert asked.schema["required"] == [*PARTS, "bag"] and asked.max_tokens > short.max_tokens
    (bare,) = Prompts.choose(QWEN2, "joint", vocabulary).questions(["bag"], SENT, with_schema=False)
    assert bare.schema is None and bare.max_tokens > asked.max_tokens - short.max_tokens


def test_every_form_and_space_of_the_table_has_its_words() -> None:
    for family in FAMILIES.values():
        sent = dataclasses.replace(SENT, space=family.space)
        for question in Prompts.choose(family, None, SHARED).questions(PARTS, sent, with_schema=True):
            assert "{" not in question.text
