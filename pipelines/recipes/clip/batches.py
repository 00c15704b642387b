"""Batches for a contrastive loss: different people, and no caption that is true of another picture of the batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.recipes.clip.captions import FACTS, by_lot, sentence
from pipelines.recipes.clip.people import People
from pipelines.recipes.clip.pictures import changed

_BIT = {fact: 1 << place for place, fact in enumerate(FACTS)}


@dataclass(frozen=True)
class CaptionedBatch:
    pixels: np.ndarray  # uint8 [B, H, W, 3], changed at random
    captions: list[str]  # B


def draw_batch(groups: Sequence[tuple[People, int]], rng: np.random.Generator) -> CaptionedBatch:
    """One batch with so many people of each group, or fewer where no more can be told apart.

    CLIP's loss takes every other caption of the batch for wrong, so each must be. People are drawn one by one; a
    caption that is true of somebody already there gets one fact more until it is not. Somebody whose every fact is
    true of another, or of whom another's caption is true, is left out of this batch.
    """
    pixels: list[np.ndarray] = []
    captions: list[str] = []
    there: list[tuple[int, int]] = []  # what is true of each person of the batch, what its caption says
    for people, wanted in groups:
        full = len(captions) + wanted
        for number in rng.permutation(len(people.names)):
            if len(captions) == full:
                break
            said = _distinct(people.facts[number], there, rng)
            if said is None:
                continue
            there.append((_bits(people.facts[number]), _bits(said)))
            captions.append(sentence(said, rng))
            pixels.append(changed(people.pixels[rng.choice(np.flatnonzero(people.owners == number))], rng))
    return CaptionedBatch(np.stack(pixels), captions)


def _distinct(facts: Sequence[str], there: Sequence[tuple[int, int]], rng: np.random.Generator) -> list[str] | None:
    """Facts to say of somebody that are not all true of anybody there, or None."""
    if not facts:
        return None
    own = _bits(facts)
    if any(said & ~own == 0 for _, said in there):
        return None
    order, count = by_lot(facts, rng)
    for more in range(count, len(order) + 1):
        said = _bits(order[:more])
        if all(said & ~true for true, _ in there):
            return order[:more]
    return None


def _bits(facts: Sequence[str]) -> int:
    return sum(_BIT[fact] for fact in facts)
