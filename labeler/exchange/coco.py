"""COCO detection JSON: `images`, `categories`, `annotations` with `bbox` [x, y, width, height] in pixels."""

from collections.abc import Sequence
from typing import Any

from labeler.exchange.images import PartBoxes, add_box


def to_coco(images: Sequence[PartBoxes], parts: Sequence[str]) -> dict[str, Any]:
    """A COCO mapping; categories are the parts in order, file_name is relative to the data set's folder."""
    number = {part: place for place, part in enumerate(parts, start=1)}
    annotations: list[dict[str, Any]] = []
    for image_number, image in enumerate(images, start=1):
        for part, box in image.boxes.items():
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_number,
                "category_id": number[part],
                "bbox": [box.x_min, box.y_min, box.width, box.height],
                "area": box.area,
                "iscrowd": 0,
            }
            annotations.append(annotation | ({"score": image.scores[part]} if part in image.scores else {}))
    return {
        "info": {"description": "body parts of persons"},
        "images": [
            {"id": place, "file_name": image.path, "width": image.width, "height": image.height}
            for place, image in enumerate(images, start=1)
        ],
        "categories": [{"id": place, "name": part, "supercategory": "person"} for part, place in number.items()],
        "annotations": annotations,
    }


def from_coco(content: Any) -> list[PartBoxes]:
    """Images with their boxes. Raises ValueError, KeyError or TypeError for what is no COCO file of part boxes."""
    parts = {entry["id"]: entry["name"] for entry in content["categories"]}
    images = {
        entry["id"]: PartBoxes(str(entry["file_name"]), int(entry["width"]), int(entry["height"]))
        for entry in content["images"]
    }
    for annotation in content["annotations"]:
        add_box(images[annotation["image_id"]], parts[annotation["category_id"]], *annotation["bbox"])
    return list(images.values())
