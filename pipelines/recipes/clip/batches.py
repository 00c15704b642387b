"""Training batches: distinct people, captions that are true of one of them only, augmented images."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.recipes.clip.captions import FACTS, compose_caption, sample_facts
from pipelines.recipes.clip.people import People

_BIT = {fact: 1 << index for index, fact in enumerate(FACTS)}


@dataclass(frozen=True)
class CaptionedBatch:
    pixels: np.ndarray  # uint8 [B, H, W, 3], augmented
    captions: list[str]  # B


def draw_batch(groups: Sequence[tuple[People, int]], rng: np.random.Generator) -> CaptionedBatch:
    """One batch with the given number of people from each group, or fewer where no more can be told apart.

    CLIP's loss treats every other caption of the batch as a negative, so none may be true of the image. People are
    sampled one by one; a caption that is also true of a person already in the batch gets further facts until it is
    not. A person is left out of the batch when all their facts are true of another, or another's caption is true of
    them.
    """
    pixels: list[np.ndarray] = []
    captions: list[str] = []
    members: list[tuple[int, int]] = []  # per person of the batch, as bits: all facts, the facts of the caption
    for people, wanted in groups:
        full = len(captions) + wanted
        for number in rng.permutation(len(people.names)):
            if len(captions) == full:
                break
            stated = _distinguishing_facts(people.facts[number], members, rng)
            if stated is None:
                continue
            members.append((_bits(people.facts[number]), _bits(stated)))
            captions.append(compose_caption(stated, rng))
            pixels.append(augment(people.pixels[rng.choice(np.flatnonzero(people.owners == number))], rng))
    return CaptionedBatch(np.stack(pixels), captions)


def _distinguishing_facts(
    facts: Sequence[str], members: Sequence[tuple[int, int]], rng: np.random.Generator
) -> list[str] | None:
    """Facts for a caption that are not all true of any member of the batch, or None."""
    if not facts:
        return None
    own = _bits(facts)
    if any(stated & ~own == 0 for _, stated in members):
        return None
    order, least = sample_facts(facts, rng)
    for count in range(least, len(order) + 1):
        stated = _bits(order[:count])
        if all(stated & ~true for true, _ in members):
            return order[:count]
    return None


def _bits(facts: Sequence[str]) -> int:
    return sum(_BIT[fact] for fact in facts)


def augment(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An augmented copy of an RGB image uint8 [H, W, 3].

    Flip, affine crop, mild colour jitter, random erasing, downscaling, blur, noise, JPEG: changes that keep a caption
    true, so no strong change of colour.
    """
    image = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    image = _color_jitter(_random_crop(np.ascontiguousarray(image), rng), rng)
    if rng.random() < 0.25:
        image = _erase(image, rng)
    if rng.random() < 0.35:
        image = _downscale(image, rng.uniform(0.3, 1.0))
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.4))
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(1, 9), image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        image = _jpeg(image, int(rng.integers(25, 90)))
    return image


def _random_crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shifted crop, scaled per axis; the border is replicated."""
    height, width = image.shape[:2]
    zoom_x, zoom_y = rng.uniform(0.82, 1.15, 2)
    shift_x, shift_y = rng.uniform(-0.07, 0.07, 2) * (width, height)
    warp = np.array(
        [
            [zoom_x, 0, (1 - zoom_x) * width / 2 + shift_x],
            [0, zoom_y, (1 - zoom_y) * height / 2 + shift_y],
        ]
    )
    moved = cv2.warpAffine(image, warp, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved)


def _color_jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random exposure, contrast, gamma and white balance, one lookup table per channel."""
    level = (np.arange(256) / 255) ** rng.uniform(0.8, 1.25)
    gains = rng.uniform(0.8, 1.2) * rng.uniform(0.94, 1.06, 3)
    curves = 0.5 + (level[:, None] * gains - 0.5) * rng.uniform(0.8, 1.2)
    return np.asarray(cv2.LUT(image, np.clip(curves * 255, 0, 255).astype(np.uint8)[:, None, :]))


def _erase(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a rectangle of one colour over 2 to 15 % of the image, in place."""
    height, width = image.shape[:2]
    area, aspect = rng.uniform(0.02, 0.15) * height * width, np.exp(rng.uniform(-1, 1))
    tall, wide = min(int(np.sqrt(area * aspect)), height), min(int(np.sqrt(area / aspect)), width)
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    image[top : top + tall, left : left + wide] = rng.integers(0, 256, 3)
    return image


def _downscale(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    small = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR))
