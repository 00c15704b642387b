import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import tokenize

from pipelines.recipes.clip.captions import COLOURS, FACTS, compose_caption, facts_of, sample_facts
from pipelines.recipes.clip.captions import tokenize as tokenize_cached
from pipelines.synthetic import DOMAINS
from pipelines.synthetic.people import person

SOME = st.lists(st.sampled_from(FACTS), min_size=1, max_size=15, unique=True)
SEEDS = st.integers(0, 2**32)


def test_facts_keep_what_can_be_said_in_one_order_whatever_the_order_of_the_words() -> None:
    words = ["lowerBodyJeans", "upperBodyOther", "upperBodyRed", "accessoryNothing", "personalMale", "upperBodyRed"]
    assert facts_of(words) == facts_of(reversed(words)) == ("personalMale", "upperBodyRed", "lowerBodyJeans")


@given(facts=SOME, seed=SEEDS)
def test_a_caption_names_every_colour_it_is_given_and_no_other(facts: list[str], seed: int) -> None:
    said = compose_caption(facts, np.random.default_rng(seed)).split()
    given_colours = {
        word
        for fact in facts
        for name, words in COLOURS.items()
        if fact.endswith(name) and not fact.startswith("hair")
        for word in words
    }
    others = {word for words in COLOURS.values() for word in words} - given_colours
    if not any(fact.startswith("hair") for fact in facts):
        assert not others & {word.strip(",") for word in said}
    for fact in facts:
        if fact.startswith(("upperBody", "lowerBody", "footwear")) and fact[9:] in COLOURS:
            assert set(COLOURS[fact[9:]]) & {word.strip(",") for word in said}


def test_the_same_facts_are_said_in_many_ways() -> None:
    rng = np.random.default_rng(0)
    facts = facts_of(["personalFemale", "upperBodyRed", "upperBodyTshirt", "lowerBodyBlue", "lowerBodyJeans"])
    assert len({compose_caption(facts, rng) for _ in range(200)}) > 150


@given(facts=SOME, seed=SEEDS)
def test_sampled_facts_are_a_permutation_and_a_minimum_count(facts: list[str], seed: int) -> None:
    order, count = sample_facts(facts, np.random.default_rng(seed))
    assert sorted(order) == sorted(facts)
    assert min(2, len(facts)) <= count <= len(facts)


@pytest.mark.parametrize("domain", DOMAINS)
def test_everything_about_generated_people_fits_the_text_encoder_with_open_clips_own_tokens(domain: str) -> None:
    rng = np.random.default_rng(1)
    captions = [compose_caption(facts_of(person(domain, identity, 0).attributes), rng) for identity in range(1, 101)]
    assert max(len(caption.split()) for caption in captions) > 20
    assert (tokenize_cached(captions, 77) == tokenize(captions, context_length=77)).all()
    assert not tokenize_cached(captions, 77)[:, 64:].any(), "the pocket CLIP's text encoder has 64 positions"


def test_a_caption_that_is_too_long_is_cut_before_its_end_mark() -> None:
    assert (tokenize_cached(["a red shirt " * 40], 16) == tokenize(["a red shirt " * 40], context_length=16)).all()
