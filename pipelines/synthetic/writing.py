"""Rendering images into files: the work of one process, and the file names."""

from dataclasses import dataclass
from pathlib import Path

import cv2

from pipelines.synthetic.layer import Image
from pipelines.synthetic.render import render_person
from shared.errors import DgreidError
from shared.geometry import Box

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"  # folders of the Market-1501 layout


@dataclass(frozen=True)
class Picture:
    """One image to render."""

    split: str  # TRAIN, QUERY or GALLERY
    label: str  # the identity in the file name: "0007", "0000" or "-1"
    identity: int  # who is rendered
    camera: int
    index: int
    displaced: bool = False

    @property
    def path(self) -> str:
        """Relative to the data set's folder."""
        return f"{self.split}/{self.label}_c{self.camera}s1_{self.index + 1:06d}_00.jpg"


@dataclass(frozen=True)
class PictureTruth:
    path: str
    parts: dict[str, Box | None]


def write_pictures(
    folder: Path, domain: str, seed: int, size: tuple[int, int], wanted: list[Picture]
) -> list[PictureTruth]:
    """Render and write images, in order. Raises OSError when a file cannot be written."""
    truths = []
    for picture in wanted:
        sample = render_person(
            domain,
            picture.identity,
            picture.camera,
            picture.index,
            seed=seed,
            size=size,
            displaced=picture.displaced,
        )
        (folder / picture.path).write_bytes(camera_jpeg(sample.pixels, sample.jpeg_quality))
        truths.append(PictureTruth(picture.path, sample.parts))
    return truths


def camera_jpeg(pixels: Image, quality: int) -> bytes:
    """JPEG bytes of RGB pixels [H, W, 3] (OpenCV: several times faster than Pillow here)."""
    done, content = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise DgreidError("OpenCV could not encode a JPEG", fix="reinstall opencv-python-headless")
    encoded: bytes = content.tobytes()
    return encoded
