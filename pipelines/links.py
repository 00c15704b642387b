"""`link` joins tracklets of several cameras to people; `duplicates` lists labels that the model doubts."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.embed import ANYWHERE, FalseAcceptRate, RunName
from pipelines.runs import newest_run, run_folder
from pipelines.terminal import emit, print_table, say
from shared.errors import DataError, UsageError
from shared.files import write_text
from shared.workspace import Workspace

if TYPE_CHECKING:
    from reid.evaluation.calibration import Calibration
    from reid.inference.embeddings import EmbeddingStore

MAX_IMAGES = 12_000  # whose pairs fit in memory
IMAGES_OF_A_TRACKLET = 20  # evenly spread; neighbouring frames say the same
Threshold = Annotated[
    float | None, typer.Option(help="least mean similarity; default: the calibrated one for --false-accepts")
]
FalseAccepts = Annotated[FalseAcceptRate, typer.Option(help="false accept rate of the calibrated threshold")]


def link(
    embeddings: Annotated[
        list[Path], typer.Argument(help="embeddings of tracked detections, one or more folders", **ANYWHERE)
    ],
    out: Annotated[
        Path, typer.Option(help="CSV that is written: camera, track, person, images, first_s, last_s", **ANYWHERE)
    ],
    run: RunName = None,
    threshold: Threshold = None,
    false_accepts: FalseAccepts = "1e-3",
    travel: Annotated[
        list[str] | None, typer.Option(help="least seconds between two cameras, e.g. door:garage=30; repeatable")
    ] = None,
) -> None:
    """Join the tracklets of several cameras to people with global ids."""
    travel_s = _travel(travel or [])

    import numpy as np

    from reid.inference.embeddings import EmbeddingStore
    from reid.inference.similarity import Comparison, Side, similarities
    from reid.retrieval.link import Tracklet, mean_similarity
    from reid.retrieval.link import link as joined

    tracklets: list[Tracklet] = []
    images: list[int] = []
    features: list[np.ndarray] = []
    visibility: list[np.ndarray] = []
    stores = [EmbeddingStore(folder) for folder in embeddings]
    for store in stores:
        store.require(stores[0].kind.model_hash)
        members: dict[tuple[str, int], list[int]] = {}
        columns = [store.facts.column(name).to_pylist() for name in ("camera", "track", "time_s", "frame", "path")]
        for row, (camera, track, _, _, path) in enumerate(zip(*columns, strict=True)):
            if track is not None:
                members.setdefault((camera if camera is not None else path, track), []).append(row)
        for (camera, track), rows in members.items():
            times = [columns[2][row] for row in rows]
            known = None not in times
            kept = np.array(rows)[
                np.linspace(0, len(rows) - 1, min(len(rows), IMAGES_OF_A_TRACKLET)).round().astype(int)
            ]
            start = sum(len(one) for one in features)
            found = store.features(kept)
            features.append(found[0])
            visibility.append(found[1])
            images.append(len(rows))
            first, last = (min(times), max(times)) if known else (None, None)
            tracklets.append(Tracklet(camera, track, first, last, np.arange(start, start + len(kept))))
    if not tracklets:
        raise DataError("no tracked detections here", path=embeddings[0], fix="dgreid embed --detections, with ids")
    least = threshold if threshold is not None else _calibrated(run, stores[0]).threshold(false_accepts)
    side = Side.of(np.concatenate(features), np.concatenate(visibility), Comparison(stores[0].kind.parts))
    similarity = mean_similarity(similarities(side, side), [one.rows for one in tracklets])
    people = joined(similarity, tracklets, least, travel_s)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("camera", "track", "person", "images", "first_s", "last_s"))
    for one, person, count in zip(tracklets, people.tolist(), images, strict=True):
        writer.writerow((one.camera, one.track, person, count, one.first_s, one.last_s))
    write_text(out, text.getvalue())
    cameras = {one.camera for one in tracklets}
    say(f"{out}: {len(tracklets)} tracklets of {len(cameras)} cameras are {len(set(people.tolist()))} people")


def duplicates(
    embeddings: Annotated[Path, typer.Argument(help="embeddings of labelled images, e.g. of a data set", **ANYWHERE)],
    run: RunName = None,
    threshold: Threshold = None,
    false_accepts: FalseAccepts = "1e-3",
    form: Annotated[Literal["table", "json"], typer.Option("--format", "-f", help="how it is printed")] = "table",
) -> None:
    """List identities that are probably one person, and images that probably show somebody else than labelled."""
    import numpy as np

    from reid.inference.embeddings import EmbeddingStore
    from reid.inference.similarity import Comparison, Side, similarities
    from reid.retrieval.doubtful import probably_mislabelled, probably_one

    store = EmbeddingStore(embeddings)
    identities = store.facts.column("identity").to_pylist()
    labelled = np.array([row for row, name in enumerate(identities) if name is not None], np.int64)
    if not len(labelled):
        raise DataError("no image here has an identity", path=embeddings, fix="dgreid embed --images <a data set>")
    if len(labelled) > MAX_IMAGES:
        raise UsageError(f"{len(labelled):,} images", fix=f"embed at most {MAX_IMAGES:,} at a time")
    calibration = None if threshold is not None else _calibrated(run, store)
    least = threshold if calibration is None else calibration.threshold(false_accepts)
    assert least is not None
    side = Side.of(*store.features(labelled), Comparison(store.kind.parts))
    values, names = similarities(side, side), [identities[row] for row in labelled]
    paths = store.facts.column("path").to_pylist()
    pairs = [one.__dict__ for one in probably_one(values, names, least)]
    images = [
        {"path": paths[labelled[one.row]], **{key: value for key, value in one.__dict__.items() if key != "row"}}
        for one in probably_mislabelled(values, names, least)
    ]
    if form == "json":
        emit(json.dumps({"threshold": least, "identities": pairs, "images": images}, indent=1) + "\n")
        return
    rows: list[tuple[Any, ...]] = [
        (one["first"], one["second"], f"{one['similarity']:.3f}", *one["images"]) for one in pairs
    ]
    print_table(("identity", "identity", "similarity", "images", "images"), rows, title="probably one person")
    rows = [(one["path"], one["identity"], f"{one['own']:.3f}", one["nearer"], f"{one['other']:.3f}") for one in images]
    columns = ("image", "labelled", "like its own", "nearer to", "like that one")
    print_table(columns, rows, title="probably mislabelled")
    say(f"mean similarities of at least {least:.3f} count as one person; look at the images before you change a label")


def _calibrated(run: str | None, store: "EmbeddingStore") -> "Calibration":
    from reid.evaluation.calibration import read_calibration

    workspace = Workspace.from_environment()
    folder = run_folder(workspace, run) if run else newest_run(workspace)
    found = read_calibration(folder, store.kind.model_hash)
    if found is None:
        raise DataError(
            "this run is not calibrated", path=folder, fix=f"dgreid calibrate --run {folder.name}, or give --threshold"
        )
    return found


def _travel(given: list[str]) -> dict[frozenset[str], float]:
    found = {}
    for text in given:
        cameras, _, seconds = text.rpartition("=")
        first, _, second = cameras.partition(":")
        try:
            found[frozenset((first, second))] = float(seconds)
        except ValueError:
            first = ""
        if not first or not second or first == second:
            raise UsageError(f"--travel {text!r} is not camera:camera=seconds", fix="write it like door:garage=30")
    return found
