"""Augmentation of scenes with boxes: random crops like a detector's, truncation, colour, blur, noise, compression."""

import cv2
import numpy as np

from pipelines.recipes.grounder.scenes import Boxes, Pixels

MIN_BOX_VISIBILITY = 0.2  # a part counts as not visible when a smaller fraction of its box is inside the view
TRUNCATED_SHARE = 0.1  # of the views: the body is cut off
HEIGHTS = (64, 96, 128, 128, 128, 160, 160, 192, 256, 256)  # pixels; the distribution of crop heights

Rng = np.random.Generator


def random_view(
    rng: Rng, pixels: Pixels, boxes: Boxes, size: tuple[int, int], other: Pixels, *, strength: float
) -> tuple[Pixels, Boxes]:
    """A view [H, W, 3] of `size` (width, height) and the boxes in its pixels, NaN where a part is not visible.

    Args:
        pixels, boxes: the scene, [H, W, 3] and [parts, 4] in its pixels.
        other: the image of another scene, used as padding and as occluder.
        strength: of the changes beside the crop, 0 (fewest) to 1 (all).
    """
    left, top, width, height = _crop_window(rng, boxes, size)
    cut = _crop(rng, pixels, (left, top, width, height), other)
    scale = np.array([size[0] / width, size[1] / height] * 2, np.float32)
    moved = (boxes - np.array([left, top] * 2, np.float32)) * scale
    shrink = cut.shape[0] > size[1]
    cut = cv2.resize(cut, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        cut, moved = cut[:, ::-1], _flipped(moved, size[0])
    moved = _clipped(moved, size)
    if rng.random() < 0.15 * strength:
        cut = _occlude(rng, cut, other)
    cut = np.ascontiguousarray(cut)
    if rng.random() < strength:
        cut = _color_jitter(rng, cut)
    if rng.random() < 1 - 0.7 * (1 - strength):
        cut = _degrade(rng, cut)
    return cut, moved


def _crop_window(rng: Rng, boxes: Boxes, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """left, top, width, height of a random crop around the person, in pixels of the scene; may exceed the image."""
    (x0, y0), (x1, y1) = (map(float, corner) for corner in (np.nanmin(boxes[:, :2], 0), np.nanmax(boxes[:, 2:], 0)))
    body = max(y1 - y0, 8.0)
    aspect = size[0] / size[1] * np.exp(rng.normal(0, 0.12))
    if rng.random() < TRUNCATED_SHARE:
        height = body * rng.uniform(0.35, 0.9)
        top = y0 - 0.06 * body + (rng.random() < 0.3) * rng.uniform(0.1, 1.1) * (body - height)
    else:
        margin = abs(rng.normal(0.08, 0.12)) + (rng.random() < 0.1) * rng.uniform(0, 0.5)
        height = body * (1 + margin)
        top = y0 - body * margin * rng.beta(2, 2) + body * rng.normal(0, 0.015)
    width = height * aspect
    if width < 0.75 * (x1 - x0) and rng.random() < 0.8:  # most crops contain the person's whole width
        width = (x1 - x0) * rng.uniform(0.9, 1.1)
    middle = (x0 + x1) / 2 + width * rng.normal(0, 0.06)
    return round(middle - width / 2), round(top), max(8, round(width)), max(16, round(height))


def _crop(rng: Rng, pixels: Pixels, window: tuple[int, int, int, int], other: Pixels) -> Pixels:
    """The window of an image; the part outside the image is padded with its border, a colour, or another image."""
    left, top, width, height = window
    rows, columns = pixels.shape[:2]
    inside = pixels[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if inside.shape[:2] == (height, width):
        return inside
    pads = max(-top, 0), max(top + height - rows, 0), max(-left, 0), max(left + width - columns, 0)
    kind = rng.random()
    if kind < 0.75:
        mode = cv2.BORDER_REPLICATE if kind < 0.6 else cv2.BORDER_REFLECT if kind < 0.65 else cv2.BORDER_CONSTANT
        return np.asarray(cv2.copyMakeBorder(inside, *pads, mode, value=rng.integers(0, 256, 3).tolist()), np.uint8)
    edge = other[:, : max(4, other.shape[1] // 5)]  # background beside the other person
    padded: Pixels = cv2.resize(edge, (width, height), interpolation=cv2.INTER_LINEAR)
    padded[pads[0] : height - pads[1], pads[2] : width - pads[3]] = inside
    return padded


def _flipped(boxes: Boxes, width: int) -> Boxes:
    flipped = boxes.copy()
    flipped[:, 0], flipped[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return flipped


def _clipped(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    """Boxes clipped to the view, NaN where less than MIN_BOX_VISIBILITY is left."""
    cut = boxes.copy()
    cut[:, 0::2] = np.clip(boxes[:, 0::2], 0, size[0])
    cut[:, 1::2] = np.clip(boxes[:, 1::2], 0, size[1])
    before = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    after = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1])
    cut[~(after >= MIN_BOX_VISIBILITY * before)] = np.nan  # NaN boxes compare false too
    return cut


def _occlude(rng: Rng, pixels: Pixels, other: Pixels) -> Pixels:
    """A copy with a small rectangle painted over, in one colour or with a piece of another image."""
    height, width = pixels.shape[:2]
    tall, wide = round(height * rng.uniform(0.08, 0.3)), round(width * rng.uniform(0.15, 0.45))
    y, x = int(rng.integers(0, height - tall)), int(rng.integers(-wide // 2, width - wide // 2))
    occluded = pixels.copy()
    target = occluded[y : y + tall, max(x, 0) : x + wide]
    if rng.random() < 0.5:
        target[:] = rng.integers(0, 256, 3)
    else:
        piece = other[int(rng.integers(0, other.shape[0] // 2)) :]
        target[:] = cv2.resize(piece, (target.shape[1], target.shape[0]), interpolation=cv2.INTER_AREA)
    return occluded


def _color_jitter(rng: Rng, pixels: Pixels) -> Pixels:
    values = pixels.astype(np.float32)
    if rng.random() < 0.15:
        values = values[:, :, rng.permutation(3)]
    grey = values.mean(axis=2, keepdims=True)
    values = grey + (values - grey) * rng.uniform(0.2, 1.4)
    middle = values.mean()
    values = middle + (values - middle) * np.exp(rng.normal(0, 0.25))
    values = values * np.exp(rng.normal(0, 0.08, 3)) * np.exp(rng.normal(0, 0.2)) + rng.normal(0, 10)
    gamma = np.exp(rng.normal(0, 0.25))
    return np.asarray(255 * (np.clip(values, 0, 255) / 255) ** gamma, np.uint8)


def _degrade(rng: Rng, pixels: Pixels) -> Pixels:
    """Random loss of resolution, blur, noise and JPEG compression."""
    height, width = pixels.shape[:2]
    if rng.random() < 0.35:
        scale = rng.uniform(0.4, 1.0)
        small = cv2.resize(
            pixels, (max(8, round(width * scale)), max(16, round(height * scale))), interpolation=cv2.INTER_AREA
        )
        pixels = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.3:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, 0.011 * height + 0.3))
    if rng.random() < 0.4:
        noise = rng.normal(0, rng.uniform(1, 12), (height, width, 1 if rng.random() < 0.5 else 3))
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 96))]
        pixels = np.asarray(cv2.imdecode(cv2.imencode(".jpg", pixels, quality)[1], cv2.IMREAD_COLOR), np.uint8)
    return pixels
