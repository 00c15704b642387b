"""Run by the Python of the tools' environment, without this project: `tools.py read|write FOLDER`.

read: FOLDER holds our exports (coco.json, label-studio.json, fiftyone.json) and the images; prints what each tool
reads: {tool: {path: {part: [x, y, width, height] in pixels}}}.
write: each tool writes FOLDER/<name>.json with the boxes of our exports.
"""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ["FIFTYONE_DO_NOT_TRACK"] = "1"

Boxes = dict[str, dict[str, list[float]]]

ONE_TAG = """<View><Image name="image" value="$image"/><RectangleLabels name="part" toName="image">
<Label value="head"/><Label value="upper_body"/><Label value="legs"/></RectangleLabels></View>"""
TWO_TAGS = """<View><Image name="image" value="$image"/><Rectangle name="box" toName="image"/>
<Labels name="part" toName="image">
<Label value="head"/><Label value="upper_body"/><Label value="legs"/></Labels></View>"""


def main() -> None:
    command, folder = sys.argv[1], Path(sys.argv[2])
    with contextlib.redirect_stdout(sys.stderr):  # the tools talk
        if command == "read":
            found = {
                "pycocotools": pycocotools_reads(folder),
                "datumaro": datumaro_reads(folder),
                "fiftyone": fiftyone_reads(folder),
                "fiftyone-coco": fiftyone_reads_coco(folder),
                "label-studio": label_studio_reads(folder),
            }
        else:
            datumaro_writes(folder)
            fiftyone_writes(folder)
            label_studio_writes(folder)
            found = {}
    print(json.dumps(found))


def pycocotools_reads(folder: Path) -> Boxes:
    """Also scores the boxes against themselves: any field that COCO's evaluation needs and we lack would fail."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO(str(folder / "coco.json"))
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    found: Boxes = {image["file_name"]: {} for image in coco.loadImgs(coco.getImgIds())}
    for one in coco.loadAnns(coco.getAnnIds()):
        found[coco.imgs[one["image_id"]]["file_name"]][names[one["category_id"]]] = one["bbox"]
    results = [{**one, "score": 1.0} for one in coco.dataset["annotations"]]
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] > 0.999, evaluation.stats
    return found


def datumaro_dataset(folder: Path) -> Any:
    import datumaro

    place = folder / "datumaro" / "annotations"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "coco.json", place / "instances_default.json")
    if not (place.parent / "images").exists():
        (place.parent / "images").symlink_to(folder / "images")
    return datumaro.Dataset.import_from(str(place.parent), "coco_instances")


def datumaro_reads(folder: Path) -> Boxes:
    from datumaro.components.annotation import AnnotationType

    dataset = datumaro_dataset(folder)
    names = [label.name for label in dataset.categories()[AnnotationType.label]]
    return {f"{item.id}.jpg": {names[one.label]: list(one.get_bbox()) for one in item.annotations} for item in dataset}


def datumaro_writes(folder: Path) -> None:
    datumaro_dataset(folder).export(str(folder / "out"), "coco_instances", save_media=False)
    shutil.move(folder / "out" / "annotations" / "instances_default.json", folder / "datumaro-coco.json")


def fiftyone_samples(folder: Path) -> Any:
    import fiftyone.utils.data

    place = folder / "fiftyone"
    place.mkdir(exist_ok=True)
    shutil.copy(folder / "fiftyone.json", place / "samples.json")
    importer = fiftyone.utils.data.LegacyFiftyOneDatasetImporter(dataset_dir=str(place), rel_dir=str(folder / "images"))
    with importer:
        return list(importer)


def fiftyone_boxes(detections: Any, width: int, height: int) -> dict[str, list[float]]:
    across = (width, height, width, height)
    return {
        one.label: [value * side for value, side in zip(one.bounding_box, across, strict=True)]
        for one in detections.detections
    }


def relative(path: str, folder: Path) -> str:
    return str(Path(path).relative_to(folder / "images"))


def fiftyone_reads(folder: Path) -> Boxes:
    import fiftyone

    samples = fiftyone_samples(folder)
    assert all(isinstance(sample.metadata, fiftyone.ImageMetadata) for sample in samples)
    return {
        relative(sample.filepath, folder): fiftyone_boxes(sample.parts, sample.metadata.width, sample.metadata.height)
        for sample in samples
    }


def fiftyone_reads_coco(folder: Path) -> Boxes:
    import fiftyone.utils.coco

    importer = fiftyone.utils.coco.COCODetectionDatasetImporter(
        data_path=str(folder / "images"), labels_path=str(folder / "coco.json")
    )
    with importer:
        return {
            relative(path, folder): fiftyone_boxes(labels["detections"], metadata.width, metadata.height)
            for path, metadata, labels in importer
        }


def fiftyone_writes(folder: Path) -> None:
    """Its JSON of samples, the documents of its database (FiftyOneDataset) with the field renamed, and COCO."""
    import fiftyone
    import fiftyone.utils.coco
    from bson import json_util

    samples = fiftyone_samples(folder)
    written = {"name": "people", "media_type": "image", "samples": [sample.to_dict() for sample in samples]}
    (folder / "fiftyone-samples.json").write_text(json.dumps(written))
    renamed = [
        fiftyone.Sample(filepath=sample.filepath, corrected=sample.parts, truth=fiftyone.Classification(label="x"))
        for sample in samples
    ]
    documents = {"samples": [sample.to_mongo_dict() for sample in renamed]}
    (folder / "fiftyone-database.json").write_text(json_util.dumps(documents))
    exporter = fiftyone.utils.coco.COCODetectionDatasetExporter(
        labels_path=str(folder / "fiftyone-coco.json"), export_media=False, abs_paths=True
    )
    with exporter:
        for sample in samples:
            exporter.export_sample(sample.filepath, sample.parts, metadata=sample.metadata)


def label_studio_tasks(folder: Path) -> Any:
    return json.loads((folder / "label-studio.json").read_text(encoding="utf-8"))


def label_studio_reads(folder: Path) -> Boxes:
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface(ONE_TAG)
    found: Boxes = {}
    for task in label_studio_tasks(folder):
        assert interface.validate_task({"data": task["data"]})
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction, return_errors=True) == []
        sides = ("original_width", "original_height") * 2
        found[task["data"]["path"]] = {
            one["value"]["rectanglelabels"][0]: [
                one["value"][key] * one[side] / 100
                for key, side in zip(("x", "y", "width", "height"), sides, strict=True)
            ]
            for one in task["predictions"][0]["result"]
        }
    return found


def label_studio_writes(folder: Path) -> None:
    """Every task submitted as it was predicted, by two labelling interfaces; the second knows uploaded files."""
    from label_studio_sdk.converter import Converter

    one_tag, two_tags = [], []
    for number, task in enumerate(label_studio_tasks(folder), start=1):
        result = task["predictions"][0]["result"]
        one_tag.append({"id": number, "data": task["data"], "annotations": [annotation(number, result)]})
        pairs = []
        for region in result:
            value = {key: region["value"][key] for key in ("x", "y", "width", "height", "rotation")}
            labels = {**value, "labels": region["value"]["rectanglelabels"]}
            pairs.append({**region, "type": "rectangle", "from_name": "box", "value": value})
            pairs.append({**region, "type": "labels", "from_name": "part", "value": labels})
        uploaded = {"image": f"/data/upload/1/{number:08x}-{Path(task['data']['path']).name}"}
        two_tags.append({"id": number, "data": uploaded, "annotations": [annotation(number, pairs)]})
    for name, interface, tasks in (("tag", ONE_TAG, one_tag), ("pairs", TWO_TAGS, two_tags)):
        source = folder / f"label-studio-{name}.source.json"
        source.write_text(json.dumps(tasks))
        for kind in ("JSON", "JSON_MIN", "COCO"):
            out = folder / f"label-studio-{name}-{kind}"
            converter = Converter(config=interface, project_dir=str(folder), download_resources=False)
            converter.convert(str(source), str(out), kind, is_dir=False)
            shutil.move(out / "result.json", f"{out}.json")


def annotation(number: int, result: Any) -> dict[str, Any]:
    time = "2026-01-01T00:00:00Z"
    return {
        "id": number,
        "completed_by": 1,
        "was_cancelled": False,
        "created_at": time,
        "updated_at": time,
        "result": result,
    }


if __name__ == "__main__":
    main()
