import random
from collections import Counter

import pytest

from reid.data.samplers import IdentityBatches


def batches_of(labels: list[int], p: int = 3, k: int = 2, seed: int = 0) -> IdentityBatches:
    return IdentityBatches(labels, identities_per_batch=p, images_per_identity=k, seed=seed)


def test_batches_follow_the_rule_of_the_method_on_random_sets() -> None:
    rng = random.Random(1)
    for trial in range(60):
        p, k = rng.randint(2, 5), rng.randint(1, 4)
        labels = [label for label in range(rng.randint(p, 12)) for _ in range(rng.randint(1, 11))]
        rng.shuffle(labels)
        plan = batches_of(labels, p, k, seed=trial).epoch(1)

        sizes = Counter(labels)
        groups = {label: max(1, size // k) for label, size in sizes.items()}  # a remainder is dropped
        used: Counter[int] = Counter()
        for batch in plan:
            assert sum(count > 0 for count in groups.values()) >= p  # only while P identities have groups left
            assert len(batch) == p * k
            found = [labels[index] for index in batch]
            chunks = [found[start : start + k] for start in range(0, p * k, k)]
            assert all(len(set(chunk)) == 1 for chunk in chunks)
            assert len({chunk[0] for chunk in chunks}) == p
            for chunk in chunks:
                groups[chunk[0]] -= 1
            used.update(batch)
        assert all(count >= 0 for count in groups.values())
        assert sum(count > 0 for count in groups.values()) < p  # and until then
        for index, count in used.items():
            assert count == 1 or sizes[labels[index]] < k  # only small identities repeat an image


def test_epochs_differ_and_can_be_repeated_in_any_order() -> None:
    labels = [label for label in range(9) for _ in range(6)]
    batches = batches_of(labels, seed=5)
    second = batches.epoch(2)
    assert batches.epoch(1) != second
    assert batches.epoch(2) == second == batches_of(labels, seed=5).epoch(2)
    assert batches_of(labels, seed=6).epoch(2) != second


def test_one_image_per_identity_is_drawn_as_often_as_a_group_needs() -> None:
    plan = batches_of([0, 1, 2, 3, 4, 5], p=3, k=4).epoch(1)
    assert len(plan) == 2
    assert sorted(Counter(index for batch in plan for index in batch).items()) == [(index, 4) for index in range(6)]


def test_fewer_identities_than_asked_reduce_the_batch_and_say_so() -> None:
    few = batches_of([7, 7, 9, 9], p=16, k=2)
    assert few.identities == 2 and "only 2 identities for batches of 16" in few.note
    assert [sorted(batch) for batch in few.epoch(1)] == [[0, 1, 2, 3]]
    assert batches_of([0, 1, 2], p=3).note == ""


def test_every_image_of_a_large_identity_is_seen_over_epochs() -> None:
    labels = [0] * 5 + [1] * 5  # with K = 4 one image of each is left out per epoch
    batches = batches_of(labels, p=2, k=4)
    seen = {index for epoch in range(1, 30) for batch in batches.epoch(epoch) for index in batch}
    assert seen == set(range(10))


def test_balanced_batches_take_equally_from_every_domain() -> None:
    rng = random.Random(2)
    for trial in range(40):
        p, k = rng.randint(3, 6), rng.randint(1, 3)
        sizes = {"big": 30, "middle": rng.randint(4, 10), "small": rng.randint(1, 8)}
        people = [(domain, number) for domain, size in sizes.items() for number in range(size)]
        images = [person for person in people for _ in range(rng.randint(1, 7))]
        rng.shuffle(images)
        labels, domains = [people.index(image) for image in images], [domain for domain, _ in images]
        plain = batches_of(labels, p, k, seed=trial)
        balanced = IdentityBatches(labels, identities_per_batch=p, images_per_identity=k, seed=trial, domains=domains)
        plan = balanced.epoch(1)
        assert plan == balanced.epoch(1) != balanced.epoch(2)
        assert len(plan) == len(plain.epoch(1)) and plan != plain.epoch(1)
        totals: Counter[str] = Counter()
        for batch in plan:
            chunks = [batch[start : start + k] for start in range(0, p * k, k)]
            assert len(chunks) == p and all(len({labels[i] for i in chunk}) == 1 for chunk in chunks)
            assert len({labels[chunk[0]] for chunk in chunks}) == p
            counts = Counter(domains[chunk[0]] for chunk in chunks)
            able = [domain for domain, size in sizes.items() if counts[domain] < size]
            assert max(counts.values()) - min(counts[domain] for domain in able) <= 1
            totals.update(counts)
        if sizes["small"] >= p:
            assert max(totals.values()) - min(totals.values()) <= 1  # the odd ones go round


def test_a_balanced_domain_shows_all_its_images_before_one_comes_again() -> None:
    labels = [0] * 4 + [1] * 4 + [2] * 40 + [3] * 40
    domains = ["small"] * 8 + ["big"] * 80
    balanced = IdentityBatches(labels, identities_per_batch=2, images_per_identity=2, seed=0, domains=domains)
    drawn = [index for batch in balanced.epoch(1) for index in batch if index < 8]
    assert len(drawn) >= 24
    assert all(set(drawn[start : start + 8]) == set(range(8)) for start in range(0, len(drawn) - 7, 8))


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        batches_of([])
