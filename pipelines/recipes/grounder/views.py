"""Random views of a scene, as detectors and cameras make them: framing, cut bodies, light, blur, compression."""

import cv2
import numpy as np

from pipelines.recipes.grounder.scenes import Boxes, Pixels

VISIBLE_SHARE = 0.2  # a part of whose box less than this is inside the view counts as not visible
CUT_SHARE = 0.1  # views in which the body is cut off
HEIGHTS = (64, 96, 128, 128, 128, 160, 160, 192, 256, 256)  # pixels, of the crops that views imitate

Rng = np.random.Generator


def view(
    rng: Rng, pixels: Pixels, boxes: Boxes, size: tuple[int, int], around: Pixels, *, gentle: float
) -> tuple[Pixels, Boxes]:
    """A view of `size` (width, height) and the boxes in it.

    Args:
        pixels, boxes: the scene, [H, W, 3] and [parts, 4] in its pixels.
        around: another scene, whose picture may fill what lies outside of this one or stand in the way.
        gentle: 0 for all the changes there are .. 1 for none but the framing.
    """
    left, top, width, height = _frame(rng, boxes, size)
    cut = _cut_out(rng, pixels, (left, top, width, height), around)
    scale = np.array([size[0] / width, size[1] / height] * 2, np.float32)
    seen = (boxes - np.array([left, top] * 2, np.float32)) * scale
    shrink = cut.shape[0] > size[1]
    cut = cv2.resize(cut, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        cut, seen = cut[:, ::-1], _mirrored(seen, size[0])
    seen = _clipped(seen, size)
    if rng.random() < 0.15 * (1 - gentle):
        cut = _occluded(rng, cut, around)
    cut = np.ascontiguousarray(cut)
    if rng.random() < 1 - gentle:
        cut = _other_light(rng, cut)
    if rng.random() < 1 - 0.7 * gentle:
        cut = _degraded(rng, cut)
    return cut, seen


def _frame(rng: Rng, boxes: Boxes, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """left, top, width, height of the view in pixels of the scene."""
    (x0, y0), (x1, y1) = (map(float, corner) for corner in (np.nanmin(boxes[:, :2], 0), np.nanmax(boxes[:, 2:], 0)))
    body = max(y1 - y0, 8.0)
    aspect = size[0] / size[1] * np.exp(rng.normal(0, 0.12))
    if rng.random() < CUT_SHARE:
        height = body * rng.uniform(0.35, 0.9)
        top = y0 - 0.06 * body + (rng.random() < 0.3) * rng.uniform(0.1, 1.1) * (body - height)
    else:
        spare = abs(rng.normal(0.08, 0.12)) + (rng.random() < 0.1) * rng.uniform(0, 0.5)
        height = body * (1 + spare)
        top = y0 - body * spare * rng.beta(2, 2) + body * rng.normal(0, 0.015)
    width = height * aspect
    if width < 0.75 * (x1 - x0) and rng.random() < 0.8:  # most crops hold the whole width of the person
        width = (x1 - x0) * rng.uniform(0.9, 1.1)
    middle = (x0 + x1) / 2 + width * rng.normal(0, 0.06)
    return round(middle - width / 2), round(top), max(8, round(width)), max(16, round(height))


def _cut_out(rng: Rng, pixels: Pixels, frame: tuple[int, int, int, int], around: Pixels) -> Pixels:
    """The framed part of a picture; what lies outside of it is made of its edges, a colour, or another picture."""
    left, top, width, height = frame
    rows, columns = pixels.shape[:2]
    inside = pixels[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if inside.shape[:2] == (height, width):
        return inside
    pads = max(-top, 0), max(top + height - rows, 0), max(-left, 0), max(left + width - columns, 0)
    kind = rng.random()
    if kind < 0.75:
        way = cv2.BORDER_REPLICATE if kind < 0.6 else cv2.BORDER_REFLECT if kind < 0.65 else cv2.BORDER_CONSTANT
        return np.asarray(cv2.copyMakeBorder(inside, *pads, way, value=rng.integers(0, 256, 3).tolist()), np.uint8)
    edge = around[:, : max(4, around.shape[1] // 5)]  # beside the other person, not on them
    wide: Pixels = cv2.resize(edge, (width, height), interpolation=cv2.INTER_LINEAR)
    wide[pads[0] : height - pads[1], pads[2] : width - pads[3]] = inside
    return wide


def _mirrored(boxes: Boxes, width: int) -> Boxes:
    turned = boxes.copy()
    turned[:, 0], turned[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return turned


def _clipped(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    """Boxes cut to the view, NaN where too little is left."""
    cut = boxes.copy()
    cut[:, 0::2] = np.clip(boxes[:, 0::2], 0, size[0])
    cut[:, 1::2] = np.clip(boxes[:, 1::2], 0, size[1])
    before = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    after = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1])
    cut[~(after >= VISIBLE_SHARE * before)] = np.nan  # NaN boxes compare false too
    return cut


def _occluded(rng: Rng, pixels: Pixels, around: Pixels) -> Pixels:
    """Something small in the way: of one colour, or a piece of another picture."""
    height, width = pixels.shape[:2]
    tall, wide = round(height * rng.uniform(0.08, 0.3)), round(width * rng.uniform(0.15, 0.45))
    y, x = int(rng.integers(0, height - tall)), int(rng.integers(-wide // 2, width - wide // 2))
    hidden = pixels.copy()
    target = hidden[y : y + tall, max(x, 0) : x + wide]
    if rng.random() < 0.5:
        target[:] = rng.integers(0, 256, 3)
    else:
        piece = around[int(rng.integers(0, around.shape[0] // 2)) :]
        target[:] = cv2.resize(piece, (target.shape[1], target.shape[0]), interpolation=cv2.INTER_AREA)
    return hidden


def _other_light(rng: Rng, pixels: Pixels) -> Pixels:
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


def _degraded(rng: Rng, pixels: Pixels) -> Pixels:
    """What a cheap camera far away leaves of a picture."""
    height, width = pixels.shape[:2]
    if rng.random() < 0.35:
        share = rng.uniform(0.4, 1.0)
        small = cv2.resize(
            pixels, (max(8, round(width * share)), max(16, round(height * share))), interpolation=cv2.INTER_AREA
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
