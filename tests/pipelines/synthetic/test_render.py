"""Rendered images: deterministic, with exact part boxes, and different between domains."""

import re

import numpy as np
import pytest

from pipelines.synthetic import DOMAINS, render_person
from pipelines.synthetic.domains import BY_NAME
from pipelines.synthetic.layer import LEGS, UPPER
from pipelines.synthetic.people import Person, person
from pipelines.synthetic.render import MIN_PART_VISIBILITY, Sample, part_boxes
from pipelines.synthetic.wardrobe import BAG_WORDS, HEADWEAR_WORDS, LOWERS, PATTERN_WORDS, SHOE_WORDS, UPPERS
from shared.errors import ConfigError
from shared.schemas import PARTS

WORD = re.compile(r"(personal|upperBody|lowerBody|hair|footwear|carrying|accessory)[A-Z]\w+")


def _samples(domain: str, count: int = 24) -> list[Sample]:
    return [render_person(domain, 1 + number // 3, 1 + number % 3, number, seed=5) for number in range(count)]


@pytest.mark.parametrize("domain", DOMAINS)
def test_same_arguments_give_the_same_pixels_in_any_order(domain: str) -> None:
    first = render_person(domain, 3, 2, 1, seed=9)
    for identity, camera, index in ((1, 1, 0), (3, 2, 2), (4, 2, 1)):
        render_person(domain, identity, camera, index, seed=9)
    again = render_person(domain, 3, 2, 1, seed=9)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.part_map, again.part_map)
    assert first.parts == again.parts


@pytest.mark.parametrize("change", [{"identity": 4}, {"camera": 1}, {"index": 2}, {"seed": 10}, {"domain": "mall"}])
def test_every_argument_changes_the_picture(change: dict[str, object]) -> None:
    given: dict[str, object] = {"domain": "plaza", "identity": 3, "camera": 2, "index": 1, "seed": 9}
    assert not np.array_equal(_render(given).pixels, _render(given | change).pixels)


def _render(given: dict[str, object]) -> Sample:
    return render_person(
        str(given["domain"]),
        int(str(given["identity"])),
        int(str(given["camera"])),
        int(str(given["index"])),
        seed=int(str(given["seed"])),
    )


@pytest.mark.parametrize("size", [(64, 128), (128, 256), (48, 160)])
def test_size_and_type(size: tuple[int, int]) -> None:
    sample = render_person("campus", 1, 1, 0, seed=0, size=size)
    assert sample.pixels.shape == (size[1], size[0], 3)
    assert sample.part_map.shape == (size[1], size[0])
    assert sample.pixels.dtype == np.uint8
    assert tuple(sample.parts) == PARTS


@pytest.mark.parametrize("domain", DOMAINS)
def test_boxes_are_tight_around_the_map_on_a_naive_scan(domain: str) -> None:
    for sample in _samples(domain):
        height, width = sample.part_map.shape
        for value, part in enumerate(PARTS, start=1):
            places = [(x, y) for y in range(height) for x in range(width) if sample.part_map[y, x] == value]
            box = sample.parts[part]
            if box is None:
                continue
            columns, rows = [x for x, _ in places], [y for _, y in places]
            assert box == (min(columns), min(rows), max(columns) + 1, max(rows) + 1)
            assert 0 <= box.x_min < box.x_max <= width
            assert 0 <= box.y_min < box.y_max <= height


@pytest.mark.parametrize("domain", DOMAINS)
def test_head_above_upper_body_above_legs(domain: str) -> None:
    whole = 0
    for sample in _samples(domain, 36):
        head, upper, legs = (sample.parts[part] for part in PARTS)
        if head is None or upper is None or legs is None:
            continue
        whole += 1
        assert head.y_min < upper.y_min < legs.y_min
        assert head.y_max < upper.y_max < legs.y_max
        hip_row = np.flatnonzero((sample.part_map == UPPER).any(axis=1)).max()
        assert legs.y_max > hip_row + 1
    assert whole > 18


def test_parts_have_human_proportions() -> None:
    heads, uppers, legs = [], [], []
    for sample in _samples("plaza", 60):
        boxes = [sample.parts[part] for part in PARTS]
        if None in boxes or boxes[2].y_max > 126:  # type: ignore[union-attr]
            continue
        stature = boxes[2].y_max - boxes[0].y_min  # type: ignore[union-attr]
        heads.append(boxes[0].height / stature)  # type: ignore[union-attr]
        uppers.append(boxes[1].height / stature)  # type: ignore[union-attr]
        legs.append(boxes[2].height / stature)  # type: ignore[union-attr]
    assert 1 / 9 < np.median(heads) < 1 / 4.5  # long hair counts as head
    assert 0.25 < np.median(uppers) < 0.45
    assert 0.42 < np.median(legs) < 0.62


def test_a_part_that_hardly_shows_is_absent() -> None:
    part_map = np.zeros((40, 20), np.uint8)
    part_map[5:10, 5:10] = 1
    part_map[20:22, 5:10] = LEGS
    full = np.array([0, 25, 100, int(10 / MIN_PART_VISIBILITY) + 1, 0])
    boxes = part_boxes(part_map, full)
    assert boxes["head"] == (5, 5, 10, 10)
    assert boxes["upper_body"] is None
    assert boxes["legs"] is None
    full[LEGS] = int(10 / MIN_PART_VISIBILITY)
    assert part_boxes(part_map, full)["legs"] == (5, 20, 10, 22)


def test_cut_and_hidden_parts_do_happen() -> None:
    absent = sum(box is None for sample in _samples("mall", 90) for box in sample.parts.values())
    assert 0 < absent < 90


def test_a_displaced_person_shows_less_of_the_body() -> None:
    covered = [
        [
            np.count_nonzero(render_person("plaza", identity, 1, 0, seed=2, displaced=displaced).part_map)
            for identity in range(1, 13)
        ]
        for displaced in (False, True)
    ]
    assert np.mean(covered[1]) < 0.8 * np.mean(covered[0])


def test_domains_differ_more_than_cameras_of_one_domain() -> None:
    means = {
        domain: np.array(
            [
                np.mean([render_person(domain, i, camera, 0, seed=4).pixels.mean((0, 1)) for i in range(1, 7)], axis=0)
                for camera in range(1, 7)
            ]
        )
        for domain in DOMAINS
    }
    centres = {domain: colours.mean(0) for domain, colours in means.items()}
    within = np.mean([np.linalg.norm(means[d] - centres[d], axis=1).mean() for d in DOMAINS])
    for number, first in enumerate(DOMAINS):
        for second in DOMAINS[number + 1 :]:
            assert np.linalg.norm(centres[first] - centres[second]) > within, (first, second)
    brightness = {domain: float(centre.mean()) for domain, centre in centres.items()}
    assert brightness["night"] < brightness["campus"] < brightness["plaza"]
    assert centres["mall"][0] - centres["mall"][2] > centres["campus"][0] - centres["campus"][2]


def test_an_identity_keeps_its_clothes_in_every_camera() -> None:
    words = {render_person("campus", 2, camera, index, seed=1).attributes for camera in (1, 2, 3) for index in (0, 1)}
    assert len(words) == 1


@pytest.mark.parametrize("domain", DOMAINS)
def test_attributes_are_words_that_say_what_is_worn(domain: str) -> None:
    people = [person(domain, identity, 0) for identity in range(1, 200)]
    for who in people:
        words = who.attributes
        assert len(words) == len(set(words))
        assert all(
            re.fullmatch(r"(personal|upperBody|lowerBody|hair|footwear|carrying|accessory)[A-Z]\w+", w) for w in words
        )
        assert f"upperBody{who.outfit.upper_word}" in words
        assert f"lowerBody{who.outfit.lower_word}" in words
        assert set(UPPERS[who.outfit.upper].words) <= set(words)
        assert ("carryingBackpack" in words) == (who.bag == "backpack")
        assert ("hairBald" in words) == (who.hair == "bald")
    assert len({who.attributes for who in people}) > 150
    assert _shared_outfits(people) > 0


def _shared_outfits(people: list[Person]) -> int:
    outfits = [who.outfit for who in people]
    return len(outfits) - len(set(outfits))


def test_wardrobes_name_only_clothes_that_exist() -> None:
    numbers = [world.number for world in BY_NAME.values()]
    assert len(set(numbers)) == len(numbers)
    for world in BY_NAME.values():
        assert set(world.uppers) <= set(UPPERS)
        assert set(world.lowers) <= set(LOWERS)
        assert set(world.patterns) <= set(PATTERN_WORDS)
        assert set(world.shoes) <= set(SHOE_WORDS)
        assert set(world.bags) <= set(BAG_WORDS)
        assert set(world.headwear) <= {"none", *HEADWEAR_WORDS}


def test_an_unknown_domain_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="plaza, campus, mall, night"):
        render_person("moon", 1, 1, 0, seed=0)
