"""Random changes of a person crop that leave what a caption says true: no strong change of colour."""

import cv2
import numpy as np


def changed(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A changed copy of an RGB image uint8 [H, W, 3]: mirrored, moved, tinted, blurred, coarsened, compressed, noisy,
    with something in front."""
    image = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    image = _tinted(_moved(np.ascontiguousarray(image), rng), rng)
    if rng.random() < 0.25:
        image = _hidden(image, rng)
    if rng.random() < 0.35:
        image = _coarse(image, rng.uniform(0.3, 1.0))
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.4))
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(1, 9), image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        image = _compressed(image, int(rng.integers(25, 90)))
    return image


def _moved(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another crop around the person: zoom of each axis and shift; the border is continued."""
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


def _tinted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, contrast, gamma and white balance of another camera, per channel as one table."""
    level = (np.arange(256) / 255) ** rng.uniform(0.8, 1.25)
    gains = rng.uniform(0.8, 1.2) * rng.uniform(0.94, 1.06, 3)
    curves = 0.5 + (level[:, None] * gains - 0.5) * rng.uniform(0.8, 1.2)
    return np.asarray(cv2.LUT(image, np.clip(curves * 255, 0, 255).astype(np.uint8)[:, None, :]))


def _hidden(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A rectangle of one colour over 2 to 15 % of the image."""
    height, width = image.shape[:2]
    area, aspect = rng.uniform(0.02, 0.15) * height * width, np.exp(rng.uniform(-1, 1))
    tall, wide = min(int(np.sqrt(area * aspect)), height), min(int(np.sqrt(area / aspect)), width)
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    image[top : top + tall, left : left + wide] = rng.integers(0, 256, 3)
    return image


def _coarse(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    small = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR))
