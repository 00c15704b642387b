import math

import numpy as np
import pytest
import torch
from torch import Tensor

from reid.config import DataConfig
from reid.data.augment import ERASED_AREA, Augmentation, cropped, erased, erased_rectangle, recoloured
from reid.data.transforms import Sample

HEIGHT, WIDTH = 32, 16
BOXES = [[2.0, 0.0, 9.0, 7.5], [1.0, 8.0, 12.0, 30.0], [math.nan] * 4]


@pytest.fixture
def sample() -> Sample:
    pixels = torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Sample(pixels, torch.tensor(BOXES, dtype=torch.float64))


def test_nothing_happens_by_default(sample: Sample) -> None:
    found = Augmentation().apply(sample, epoch=1, index=0)
    assert torch.equal(found.image, sample.image)
    assert torch.equal(found.boxes.nan_to_num(-1), sample.boxes.nan_to_num(-1))
    assert Augmentation.of(DataConfig(), seed=3) == Augmentation(flip=0.5, seed=3)


def test_a_crop_is_the_shifted_image_with_shifted_boxes(sample: Sample) -> None:
    generator = np.random.default_rng(0)
    for _ in range(100):
        corners = np.sort(generator.uniform(-4, 36, (3, 2, 2)), axis=1).transpose(0, 1, 2)
        boxes = torch.tensor(np.concatenate([corners[:, 0], corners[:, 1]], axis=1))
        padding, keeps = int(generator.integers(1, 12)), float(generator.uniform(0.1, 1))
        top, left = (int(value) for value in generator.integers(0, 2 * padding + 1, 2))
        found = cropped(Sample(sample.image, boxes), padding, top, left, keeps)
        down, right = top - padding, left - padding  # where the new corner lies in the old image
        for y in range(0, HEIGHT, 5):
            for x in range(0, WIDTH, 3):
                inside = 0 <= y + down < HEIGHT and 0 <= x + right < WIDTH
                expected = sample.image[:, y + down, x + right] if inside else torch.zeros(3)
                assert found.image[:, y, x].tolist() == expected.tolist()
        for box, moved in zip(boxes.tolist(), found.boxes.tolist(), strict=True):
            x0, x1 = (min(max(value, 0), WIDTH) for value in (box[0], box[2]))  # what the image showed of it
            y0, y1 = (min(max(value, 0), HEIGHT) for value in (box[1], box[3]))
            u0, u1 = (min(max(value - right, 0), WIDTH) for value in (x0, x1))
            v0, v1 = (min(max(value - down, 0), HEIGHT) for value in (y0, y1))
            before, after = (x1 - x0) * (y1 - y0), (u1 - u0) * (v1 - v0)
            if abs(after - keeps * before) < 1e-9:
                continue  # exactly at the threshold, e.g. an empty box
            if after < keeps * before:
                assert all(math.isnan(value) for value in moved)
            else:
                assert moved == pytest.approx([u0, v0, u1, v1])


def test_a_part_cut_off_is_absent_and_an_absent_part_stays_absent(sample: Sample) -> None:
    found = cropped(sample, 6, 12, 6, min_box_visibility=0.5).boxes  # six rows of the head's seven and a half are gone
    assert found[0].isnan().all() and found[2].isnan().all()
    assert found[1].tolist() == [1, 2, 12, 24]
    assert cropped(sample, 6, 12, 6, min_box_visibility=0.2).boxes[0].tolist() == [2, 0, 9, 1.5]
    assert sample.boxes[0].tolist() == BOXES[0]  # the given sample is left alone


def test_erasing_paints_a_rectangle_of_the_papers_size_and_moves_no_box(sample: Sample) -> None:
    found = erased(sample, 3, 2, 10, 5)
    changed = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    changed[3:13, 2:7] = True
    assert (found.image[:, changed] == 127).all()
    assert torch.equal(found.image[:, ~changed], sample.image[:, ~changed])
    assert found.boxes is sample.boxes
    generator = np.random.default_rng(0)
    areas = []
    for _ in range(500):
        top, left, tall, wide = erased_rectangle(generator, 256, 128)
        assert top >= 0 and left >= 0 and top + tall <= 256 and left + wide <= 128
        areas.append(tall * wide / (256 * 128))
    assert min(areas) > ERASED_AREA[0] * 0.9 and max(areas) < ERASED_AREA[1] * 1.05


def test_colours_are_multiplied(sample: Sample) -> None:
    brighter = recoloured(sample, 0.5, 1.0, 1.0).image
    assert torch.allclose(brighter.float(), sample.image.float() * 0.5, atol=1.0)
    grey = recoloured(sample, 1.0, 1.0, 0.0).image
    luma = (sample.image.float() * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(0)
    assert torch.allclose(grey.float(), luma.expand(3, -1, -1), atol=1.5)
    flat = recoloured(sample, 1.0, 0.0, 1.0)
    assert flat.image.float().std() < 1 and torch.equal(flat.boxes[:2], sample.boxes[:2])


@pytest.mark.parametrize("change", [{"crop_padding": 4}, {"erasing": 0.5}, {"colour_jitter": 0.3}])
def test_changes_depend_on_seed_epoch_and_index_alone_and_not_on_each_other(
    sample: Sample, change: dict[str, float]
) -> None:
    def images(epoch: int, seed: int = 0, **more: float) -> list[Tensor]:
        augmentation = Augmentation(seed=seed, **{**change, **more})  # type: ignore[arg-type]
        return [augmentation.apply(sample, epoch=epoch, index=index).image for index in range(12)]

    def same(first: list[Tensor], second: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    first = images(1)
    assert same(images(1), first)
    assert not same(images(2), first) and not same(images(1, seed=1), first)
    assert not same(first, [sample.image] * 12)
    mirrored = [image.flip(-1) for image in images(1, flip=1.0)]
    kept = [torch.equal(a, sample.image) for a in first]
    assert [torch.equal(image, sample.image) for image in mirrored] == kept  # the flip changes no other decision


def test_the_chance_of_erasing(sample: Sample) -> None:
    augmentation = Augmentation(erasing=0.3)
    hit = [(augmentation.apply(sample, epoch=1, index=i).image != sample.image).any().item() for i in range(400)]
    assert 0.22 < sum(hit) / 400 < 0.38
