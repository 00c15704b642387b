import numpy as np
import pytest

from pipelines.recipes.clip.batches import augment, draw_batch
from pipelines.recipes.clip.captions import compose_caption
from pipelines.recipes.clip.people import People, concatenate, is_held_out


@pytest.fixture
def stated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The facts of every caption that is composed."""
    facts: list[tuple[str, ...]] = []

    def spy(given: list[str], rng: np.random.Generator) -> str:
        facts.append(tuple(given))
        return compose_caption(given, rng)

    monkeypatch.setattr("pipelines.recipes.clip.batches.compose_caption", spy)
    return facts


@pytest.mark.parametrize("seed", range(20))
def test_no_caption_is_true_of_another_person_of_the_batch(
    painted_people: People, stated: list[tuple[str, ...]], seed: int
) -> None:
    batch = draw_batch([(painted_people, 12)], np.random.default_rng(seed))
    assert len(batch.captions) == len(batch.pixels) == len(stated) == 12
    known = [set(facts) for facts in painted_people.facts]
    for facts in stated:
        assert sum(set(facts) <= person for person in known) == 1


def test_people_who_cannot_be_told_apart_are_not_in_one_batch(painted_people: People) -> None:
    twins = concatenate([painted_people, painted_people])
    batch = draw_batch([(twins, 24)], np.random.default_rng(0))
    assert len(batch.captions) == 12


def test_groups_get_their_share_and_the_seed_decides(painted_people: People) -> None:
    first, second = painted_people.only(np.arange(12) < 6), painted_people.only(np.arange(12) >= 6)
    batch, again = (draw_batch([(first, 4), (second, 5)], np.random.default_rng(3)) for _ in range(2))
    assert batch.captions == again.captions and np.array_equal(batch.pixels, again.pixels)
    assert len(batch.captions) == 9
    assert sum("red" in caption or "blue" in caption for caption in batch.captions) == 4


def test_only_keeps_the_images_of_the_chosen_people_and_renumbers_them(painted_people: People) -> None:
    kept = painted_people.only(np.arange(12) % 4 == 1)
    assert kept.names == ("painted/1", "painted/5", "painted/9")
    assert kept.owners.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(kept.pixels, painted_people.pixels[[2, 3, 10, 11, 18, 19]])


def test_a_split_holds_out_the_same_people_always_and_about_one_in_five() -> None:
    names = tuple(f"synth_plaza/{number}" for number in range(1000))
    people = People(np.zeros((1000, 1, 1, 3), np.uint8), np.arange(1000), names, (("upperBodyRed",),) * 1000)
    trained, held = people.split()
    assert set(trained.names) | set(held.names) == set(names) and not set(trained.names) & set(held.names)
    assert 150 < len(held.names) < 250
    assert {name for name in names if is_held_out(name)} == set(held.names)
    assert is_held_out("3dpes/9") and not is_held_out("3dpes/10")  # written down: it may never change


def test_an_augmented_image_keeps_its_size_and_roughly_its_colour(painted_people: People) -> None:
    rng = np.random.default_rng(0)
    before = painted_people.pixels[0].copy()
    for _ in range(50):
        after = augment(painted_people.pixels[0], rng)
        assert after.shape == before.shape and after.dtype == np.uint8
        red, green, blue = np.median(after.reshape(-1, 3), axis=0)
        assert red > 2 * max(green, blue)
    assert np.array_equal(painted_people.pixels[0], before)
