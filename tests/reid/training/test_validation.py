import numpy as np
import pytest

from reid.data.training_set import TrainingSet
from reid.training.validation import hold_out
from shared.errors import DataError


def images_of(people: dict[tuple[str, int], list[int | None]]) -> TrainingSet:
    """(data set, identity) -> the cameras of its images."""
    identities = tuple(sorted(people))
    table = [(label, camera) for label, person in enumerate(identities) for camera in people[person]]
    names = [identities[label][0] for label, _ in table]
    return TrainingSet(
        datasets=tuple(names),
        paths=tuple(f"{index}.png" for index in range(len(table))),
        image_ids=tuple(f"{index:016x}" for index in range(len(table))),
        labels=np.array([label for label, _ in table]),
        cameras=tuple(camera for _, camera in table),
        boxes=np.arange(len(table) * 12, dtype=float).reshape(-1, 3, 4),
        identities=identities,
        sources=tuple(sorted(set(names))),
        label_run="first",
        dropped={},
    )


@pytest.fixture
def data() -> TrainingSet:
    alpha: dict[tuple[str, int], list[int | None]] = {("alpha", identity): [0, 0, 1] for identity in range(10)}
    alpha[("alpha", 3)] = [0, 0, 0]  # never found in another camera
    return images_of(alpha | {("beta", identity): [None, None] for identity in range(1, 21)})


def test_a_share_of_every_source_is_held_out_and_nobody_is_on_both_sides(data: TrainingSet) -> None:
    train, held = hold_out(data, 0.2, seed=0)
    counts = {name: sum(source == name for source, _ in held.data.identities) for name in ("alpha", "beta")}
    assert counts == {"alpha": 2, "beta": 4}
    assert set(train.identities) | set(held.data.identities) == set(data.identities)
    assert not set(train.identities) & set(held.data.identities)
    assert ("alpha", 3) in train.identities
    for part in (train, held.data):
        for index in range(len(part)):
            place = data.paths.index(part.paths[index])
            assert part.identities[part.labels[index]] == data.identities[data.labels[place]]
            assert part.cameras[index] == data.cameras[place] and (part.boxes[index] == data.boxes[place]).all()
    assert set(held.data.labels) == set(range(6))
    assert [held.is_query[held.data.labels == label].sum() for label in range(6)] == [1] * 6
    assert train.sha256 != data.sha256


def test_the_seed_decides(data: TrainingSet) -> None:
    assert hold_out(data, 0.2, seed=0)[1].data.identities == hold_out(data, 0.2, seed=0)[1].data.identities
    assert len({hold_out(data, 0.2, seed=seed)[1].data.identities for seed in range(5)}) > 1


def test_perfect_features_score_100_and_wrong_ones_less(data: TrainingSet) -> None:
    _, held = hold_out(data, 0.3, seed=1)
    perfect = np.eye(len(held.data.identities), dtype=np.float32)[held.data.labels]
    assert held.mean_ap(perfect) == pytest.approx(100)
    random = np.random.default_rng(0).normal(size=(len(held.data), 8)).astype(np.float32)
    assert held.mean_ap(random) < 90


def test_nobody_to_hold_out_is_an_error() -> None:
    alone = images_of({("alpha", identity): [1, 1] for identity in range(1, 6)})
    with pytest.raises(DataError, match="0 of 5 identities"):
        hold_out(alone, 0.5, seed=0)
    few = images_of({("alpha", identity): [1, 2] for identity in range(1, 4)})
    with pytest.raises(DataError, match="2 of 3"):
        hold_out(few, 0.6, seed=0)
