"""Query and gallery of a test set.

Rules, after the papers that report on these sets:
    fixed       query and gallery as the layout gives them (Market-1501 and its like)
    VIPeR       a random half of the people: 316 of 632, camera a asks, camera b is searched
    PRID2011    100 of the 200 shared people ask; searched is camera b without the other 100 people (649 images)
    GRID        125 of the 250 people ask; searched are their gallery images and all 775 distractors
    single shot sets without any split (i-LIDS): of a random half of the people (60 of 119) one random image asks and
                one other is searched, from another camera where cameras are labelled
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import DataError
from shared.schemas import ImageStatus, Kind, ManifestRow

FIXED = "fixed query and gallery"
HALVED = frozenset({"viper", "prid", "grid"})  # query and gallery hold everybody; half of them are for training


@dataclass(frozen=True)
class EvaluationSplit:
    """Rows of one test, ordered by path. Junk and distractors are in the gallery; queries are people."""

    query: tuple[ManifestRow, ...]
    gallery: tuple[ManifestRow, ...]
    rule: str  # for the protocol line


def make_splits(
    target: str, rows: Sequence[ManifestRow], *, folds: Sequence[frozenset[int]], count: int, seed: int
) -> list[EvaluationSplit]:
    """Splits of one data set.

    Args:
        folds: published train identities per fold; empty: none are published.
        count: how many splits to draw, or how many folds to use at most.
        seed: of the draws; split k is the same whatever `count` is.

    Raises DataError when there is nobody to ask for.
    """
    readable = sorted((row for row in rows if row.status == ImageStatus.OK), key=lambda row: (row.path, row.split))
    query = [row for row in readable if row.split == "query" and row.kind == Kind.PERSON]
    gallery = [row for row in readable if row.split == "gallery"]
    loose = [row for row in readable if row.split == "all" and row.kind == Kind.PERSON]
    generators = [np.random.Generator(np.random.PCG64(child)) for child in np.random.SeedSequence(seed).spawn(count)]
    if folds:
        splits = [_without(query, gallery, ids, "published fold") for ids in folds[:count]]
    elif target in HALVED:
        splits = [_random_half(query, gallery, generator, seed) for generator in generators]
    elif loose and not query:
        splits = [_single_shot(loose, generator, seed) for generator in generators]
    else:
        splits = [EvaluationSplit(tuple(query), tuple(gallery), FIXED)]
    if not splits or not all(split.query and split.gallery for split in splits):
        raise DataError(
            f"{target} has nobody to ask for: {len(query)} readable query and {len(gallery)} gallery images",
            fix="test on a data set that has both, or on one with two images of a person; this one can be a source",
        )
    return splits


def _without(
    query: Sequence[ManifestRow], gallery: Sequence[ManifestRow], train_ids: frozenset[int], rule: str
) -> EvaluationSplit:
    """Everybody but the people of the training half; queries need their person in the gallery."""
    findable = {row.identity for row in gallery} - train_ids
    return EvaluationSplit(
        tuple(row for row in query if row.identity in findable),
        tuple(row for row in gallery if row.identity not in train_ids),
        rule,
    )


def _random_half(
    query: Sequence[ManifestRow], gallery: Sequence[ManifestRow], generator: np.random.Generator, seed: int
) -> EvaluationSplit:
    people = sorted({row.person for row in query} & {row.identity for row in gallery})
    test = generator.permutation(len(people))[: _half(len(people))]
    train_ids = frozenset(people) - {people[place] for place in test}
    return _without(query, gallery, train_ids, f"random half of the identities, seed {seed}")


def _single_shot(rows: Sequence[ManifestRow], generator: np.random.Generator, seed: int) -> EvaluationSplit:
    images: dict[int, list[ManifestRow]] = defaultdict(list)
    for row in rows:
        images[row.person].append(row)
    people = sorted(identity for identity, own in images.items() if any(_partners(row, own) for row in own))
    query, gallery = [], []
    for place in sorted(generator.permutation(len(people))[: _half(len(people))]):
        own = images[people[place]]
        asking = [row for row in own if _partners(row, own)]
        query.append(asking[generator.integers(len(asking))])
        partners = _partners(query[-1], own)
        gallery.append(partners[generator.integers(len(partners))])
    rule = f"random half of the identities, one image against one, seed {seed}"
    return EvaluationSplit(tuple(query), tuple(gallery), rule)


def _partners(query: ManifestRow, own: Sequence[ManifestRow]) -> list[ManifestRow]:
    """Images of the same person that the Market-1501 rule does not remove for this query."""
    return [row for row in own if row is not query and (query.camera is None or row.camera != query.camera)]


def _half(count: int) -> int:
    return (count + 1) // 2  # 60 of 119, as published for i-LIDS
