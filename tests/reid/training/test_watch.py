"""Losses that stay on the device until they are looked at."""

import math

import pytest
import torch

from reid.training.curves import LOOK_EVERY, Watch


def steps(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(("every", "looks"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (100, [7])])
def test_every_step_is_looked_at_once_with_what_it_came_from(every: int, looks: list[int]) -> None:
    watch, found, times = Watch(("loss", "text"), torch.device("cpu")), [], []
    watch._every = every
    values = steps(7)
    for number, value in enumerate(values, start=1):
        watch.add(value, f"batch {number}")
        seen = watch.looked_at(last=number == 7)
        found += seen
        times += [number] if seen else []
    assert times == looks
    assert [(number, kept) for number, _, kept in found] == [(n, f"batch {n}") for n in range(1, 8)]
    for (_, row, _), value in zip(found, values, strict=True):
        assert list(row.values()) == value.tolist()
    mean = torch.stack(values).mean(0)
    assert list(watch.means.values()) == pytest.approx(mean.tolist(), rel=1e-5)
    assert not watch._waiting  # no batch is kept longer than needed


def test_the_first_step_that_is_not_finite_is_among_those_looked_at() -> None:
    watch = Watch(("loss",), torch.device("cpu"))
    watch._every = LOOK_EVERY
    for number in range(1, LOOK_EVERY + 1):
        watch.add(torch.tensor([math.nan if number >= 5 else 1.0]), number)
    wrong = [(number, kept) for number, row, kept in watch.looked_at(last=False) if not math.isfinite(row["loss"])]
    assert wrong[0] == (5, 5)
