"""FiftyOne's JSON of samples: detections with `bounding_box` [x, y, width, height] as shares of the image."""

from collections.abc import Sequence
from typing import Any

from labeler.exchange.images import PartBoxes, add_box

FIELD = "parts"


def to_fiftyone(images: Sequence[PartBoxes]) -> dict[str, Any]:
    """Samples whose field `parts` holds the detections; filepath is relative to the data set's folder."""
    return {
        "samples": [
            {
                "filepath": image.path,
                "metadata": {"width": image.width, "height": image.height},
                FIELD: {"_cls": "Detections", "detections": [_detection(image, part) for part in image.boxes]},
            }
            for image in images
        ]
    }


def from_fiftyone(content: Any) -> list[PartBoxes]:
    """Samples with their detections. Raises ValueError, KeyError or TypeError for what is no such file."""
    images = []
    for sample in content["samples"]:
        size = sample["metadata"]
        image = PartBoxes(str(sample["filepath"]), int(size["width"]), int(size["height"]))
        for detection in (sample.get(FIELD) or {}).get("detections", []):
            x, y, width, height = detection["bounding_box"]
            across, down = image.width, image.height
            add_box(image, detection["label"], x * across, y * down, width * across, height * down)
        images.append(image)
    return images


def _detection(image: PartBoxes, part: str) -> dict[str, Any]:
    box = image.boxes[part]
    across, down = image.width, image.height
    return {
        "_cls": "Detection",
        "label": part,
        "bounding_box": [box.x_min / across, box.y_min / down, box.width / across, box.height / down],
    } | ({"confidence": image.scores[part]} if part in image.scores else {})
