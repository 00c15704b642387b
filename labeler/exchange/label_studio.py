"""Label Studio JSON: a list of tasks with rectangles in percent of the image.

Outgoing boxes are predictions, which people accept or correct; incoming are the annotations that people submitted.
A task without one was not looked at and changes nothing. The labelling interface needs
`<RectangleLabels name="part" toName="image">` with one label per part.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

from labeler.exchange.images import PartBoxes, add_box

FROM_NAME, TO_NAME = "part", "image"


def to_label_studio(images: Sequence[PartBoxes], parts: Sequence[str], *, image_prefix: str, model: str) -> list[Any]:
    """Tasks to import. image_prefix: what makes an address of a path, e.g. "/data/local-files/?d=viper/"."""
    return [
        {
            "data": {TO_NAME: image_prefix + quote(image.path), "path": image.path},
            "predictions": [
                {"model_version": model, "result": [_rectangle(image, part) for part in parts if part in image.boxes]}
            ],
        }
        for image in images
    ]


def from_label_studio(content: Any) -> list[PartBoxes]:
    """The images that people have annotated, with the newest annotation of each.

    Raises ValueError, KeyError or TypeError for what is no such export.
    """
    images = []
    for task in content:
        submitted = [one for one in task.get("annotations", []) if not one.get("was_cancelled")]
        if submitted:
            newest = max(submitted, key=lambda one: (str(one.get("updated_at", "")), one.get("id") or 0))
            images.append(_annotated(task, newest["result"]))
    return images


def _annotated(task: Any, result: Any) -> PartBoxes:
    rectangles = [one for one in result if one["type"] == "rectanglelabels"]
    data = task["data"]
    path = str(data.get("path") or unquote(str(data[TO_NAME])).rpartition("?d=")[2])
    sizes = {(int(one["original_width"]), int(one["original_height"])) for one in rectangles}
    if len(sizes) > 1:
        raise ValueError(f"{path}: rectangles of different image sizes {sorted(sizes)}")
    image = PartBoxes(path, *(sizes.pop() if sizes else (0, 0)))
    for one in rectangles:
        value = one["value"]
        (part,) = value["rectanglelabels"]
        if value.get("rotation"):
            raise ValueError(f"{path}: the rectangle of {part!r} is rotated")
        x_factor, y_factor = image.width / 100, image.height / 100
        add_box(
            image,
            part,
            value["x"] * x_factor,
            value["y"] * y_factor,
            value["width"] * x_factor,
            value["height"] * y_factor,
        )
    return image


def _rectangle(image: PartBoxes, part: str) -> dict[str, Any]:
    box = image.boxes[part]
    return {
        "type": "rectanglelabels",
        "from_name": FROM_NAME,
        "to_name": TO_NAME,
        "original_width": image.width,
        "original_height": image.height,
        "value": {
            "x": 100 * box.x_min / image.width,
            "y": 100 * box.y_min / image.height,
            "width": 100 * box.width / image.width,
            "height": 100 * box.height / image.height,
            "rotation": 0,
            "rectanglelabels": [part],
        },
    } | ({"score": image.scores[part]} if part in image.scores else {})
