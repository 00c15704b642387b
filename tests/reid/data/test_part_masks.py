import math

import pytest
import torch

from reid.data.part_masks import PatchGrid, patch_masks


def slow_masks(boxes, original_size, grid, patch_coverage):
    """Cut every patch into fine squares and count those whose centre lies in the box, scaled to the input."""
    fine, rows = 64, []
    for x_min, y_min, x_max, y_max in boxes.tolist():
        x_scale, y_scale = grid.image_width / original_size[0], grid.image_height / original_size[1]
        for row in range(grid.rows):
            for column in range(grid.columns):
                inside = 0
                for i in range(fine):
                    y = row * grid.stride + (i + 0.5) * grid.patch / fine
                    for j in range(fine):
                        x = column * grid.stride + (j + 0.5) * grid.patch / fine
                        inside += x_min * x_scale <= x < x_max * x_scale and y_min * y_scale <= y < y_max * y_scale
                rows.append(inside / fine**2)
    shares = torch.tensor(rows).view(len(boxes), grid.count)
    doubtful = (shares - patch_coverage).abs() < 3 / fine  # the counted area is only this exact
    return shares >= patch_coverage, ~doubtful


@pytest.mark.parametrize(
    ("grid", "original_size"),
    [
        (PatchGrid(32, 16, 8, 8), (61, 147)),
        (PatchGrid(40, 28, 16, 12), (48, 128)),
        (PatchGrid(32, 16, 8, 4), (16, 32)),
    ],
)
@pytest.mark.parametrize("patch_coverage", [0.25, 0.5, 1.0])
def test_equals_counting_points_inside_the_box(grid, original_size, patch_coverage):
    width, height = original_size
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width, height]) * 1.3 - 5
    boxes = corners.flatten(1)
    boxes[2] = torch.tensor([-4.0, -4.0, width + 4.0, height / 2])
    fast = patch_masks(boxes, original_size, grid, patch_coverage)
    slow, certain = slow_masks(boxes, original_size, grid, patch_coverage)
    assert fast.dtype == torch.bool and fast.shape == (3, grid.count)
    assert certain.float().mean() > 0.5
    assert torch.equal(fast[certain], slow[certain])
    assert fast.any() and not fast.all()


def test_grid_of_the_paper_and_of_overlapping_patches():
    assert (PatchGrid(256, 128, 16, 16).rows, PatchGrid(256, 128, 16, 16).columns) == (16, 8)
    assert (PatchGrid(256, 128, 16, 12).rows, PatchGrid(256, 128, 16, 12).columns) == (21, 10)
    assert PatchGrid(256, 128, 16, 12).count == 210


def test_a_painted_box_lands_row_by_row():
    box = torch.tensor([[0.0, 64.0, 32.0, 128.0]])  # left half, lower half of a 64 x 128 original
    grid = PatchGrid(32, 16, 8, 8)
    visible = patch_masks(box, (64, 128), grid, 0.5).view(grid.rows, grid.columns)
    expected = torch.tensor([[0, 0], [0, 0], [1, 0], [1, 0]]).bool()
    assert torch.equal(visible, expected)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_the_threshold_itself_counts_as_visible_whatever_the_scale(share):
    grid = PatchGrid(256, 128, 16, 16)
    for width in range(40, 140):  # the box ends inside the second column, at a place that floats rarely hold exactly
        end = (1 + share) * 16 * width / 128
        boxes = torch.tensor([[0.0, 0.0, end, 300.0], [0.0, 0.0, end - 0.01, 300.0]], dtype=torch.float64)
        exact, less = patch_masks(boxes, (width, 300), grid, share).view(2, 16, 8)
        assert exact[:, 1].all() and less[:, 0].all() and not less[:, 1].any()


def test_no_box_reversed_box_and_no_parts():
    grid = PatchGrid(32, 16, 8, 8)
    boxes = torch.tensor([[math.nan] * 4, [30.0, 60.0, 2.0, 3.0], [0.0, 0.0, math.nan, 64.0], [0.0, 0.0, 32.0, 64.0]])
    visible = patch_masks(boxes, (32, 64), grid, 0.01)
    assert visible.any(dim=1).tolist() == [False, False, False, True]
    assert patch_masks(torch.empty(0, 4), (32, 64), grid, 0.5).shape == (0, 8)
