"""`index` keeps a gallery of embeddings, `search` finds a person in it."""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.embed import ANYWHERE, ON_DISK, DeviceName, FalseAcceptRate, RunName, image_files, load_encoder, tell
from pipelines.runs import newest_run, run_folder
from pipelines.terminal import emit, print_table, say
from shared.errors import DataError, UsageError
from shared.files import write_text
from shared.object_storage import remote, root_path
from shared.workspace import Workspace

if TYPE_CHECKING:
    from reid.evaluation.calibration import Calibration
    from reid.inference.embeddings import EmbeddingStore
    from reid.inference.encoder import Embeddings, PersonEncoder
    from reid.retrieval.search import Found

EXACT_ROWS = 1_000_000  # up to here a search is exact unless it is asked otherwise
Gallery = Annotated[Path, typer.Argument(help="folder of embeddings, or s3://bucket/...", **ANYWHERE)]


def index(
    gallery: Gallery,
    images: Annotated[str | None, typer.Option(help="a folder, data set or manifest to add; as for embed")] = None,
    run: RunName = None,
    camera: Annotated[str | None, typer.Option(help="name of the camera that took the added images")] = None,
    remove: Annotated[
        str | None, typer.Option(help="SQL: remove the rows that satisfy it, e.g. camera = 'door'")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="remove the rows whose file is gone")] = False,
    approximate: Annotated[bool, typer.Option("--approximate", help="build or renew the approximate index")] = False,
    uri: Annotated[str | None, typer.Option(help="of the approximate index: a folder, s3://..., gs://...")] = None,
    device: DeviceName = "auto",
) -> None:
    """Add, replace and remove images of a gallery, and build the index for galleries beyond a million images."""
    workspace = Workspace.from_environment()
    broken = None
    if images is not None:
        files = image_files(images, workspace, camera)

        from reid.inference.embed_files import embed_files

        broken = embed_files(files, load_encoder(workspace, run, device), gallery)
    from reid.inference.embeddings import EmbeddingStore, writing

    store = EmbeddingStore(gallery)
    gone: list[str] = []
    if remove is not None:
        chosen = store.where(remove)
        gone += [key for key, out in zip(store.facts.column("key").to_pylist(), chosen, strict=True) if out]
    if prune:
        gone += _without_file(store)
    if gone:
        with writing(gallery, store.kind) as writer:
            say(f"{writer.remove(set(gone)):,} images removed")
        store = EmbeddingStore(gallery)
    if approximate or uri:
        from reid.retrieval.approximate import place_of, synchronise

        found = synchronise(store, uri)
        say(
            f"approximate index at {place_of(store, found.uri)}: recall@10 {found.recall:.3f} of exact search, "
            f"{found.probes} partitions"
        )
    cameras = len(set(store.facts.column("camera").to_pylist()) - {None})
    say(f"{gallery}: {len(store):,} images of {cameras} cameras by model {store.kind.model_hash}")
    if broken:
        tell(broken, gallery)


def _without_file(store: "EmbeddingStore") -> list[str]:
    """Keys of the rows whose file is gone. Raises DataError where a whole folder is: it may only be out of reach."""
    folders: dict[str, Path] = {}
    gone = []
    for row in store.facts.select(["key", "folder", "path"]).to_pylist():
        name = row["folder"]
        if name not in folders:
            folder = folders[name] = root_path(name, remember=True)
            there = remote(folder)
            if not (there.files() if there else folder.is_dir()):
                raise DataError(
                    "images were embedded from this folder, which is not there",
                    path=folder,
                    fix="make it reachable; or, when it is gone for good: --remove \"folder = '...'\"",
                )
        if not (folders[name] / row["path"]).exists():
            gone.append(row["key"])
    return gone


def search(
    query: Annotated[list[Path], typer.Option(help="a crop of one person; repeatable", **ANYWHERE)],
    gallery: Annotated[Path, typer.Option(help="folder of embeddings, or s3://bucket/...", **ANYWHERE)],
    run: RunName = None,
    part: Annotated[
        str | None, typer.Option(help="compare this part alone, or whole: the person without parts")
    ] = None,
    camera: Annotated[list[str] | None, typer.Option(help="search this camera's images only; repeatable")] = None,
    where: Annotated[
        str | None, typer.Option(help="SQL over path, identity, camera, frame, time_s, track, ...")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=10_000, help="images to show")] = 20,
    approximate: Annotated[
        bool | None, typer.Option("--approximate/--exact", help="default: exact up to a million images")
    ] = None,
    false_accepts: Annotated[
        FalseAcceptRate, typer.Option(help="false accept rate of the threshold for unknown people")
    ] = "1e-3",
    prior: Annotated[float, typer.Option(help="prior probability that a pair shows one person, 0 to 1")] = 0.5,
    form: Annotated[
        Literal["table", "json"], typer.Option("--format", "-f", help="how the result is printed")
    ] = "table",
    html: Annotated[
        Path | None, typer.Option(help="also write a page with the images and their parts", **ON_DISK)
    ] = None,
    device: DeviceName = "auto",
) -> None:
    """Find the person of a crop in a gallery: the nearest images, with probabilities where the run is calibrated."""
    workspace = Workspace.from_environment()
    folder = run_folder(workspace, run) if run else newest_run(workspace)
    if not 0 < prior < 1:
        raise UsageError(f"--prior {prior:g} is not between 0 and 1", fix="give e.g. 0.01")

    from reid.evaluation.calibration import read_calibration
    from reid.inference.embeddings import EmbeddingStore

    store = EmbeddingStore(gallery)
    encoder = load_encoder(workspace, str(folder), device)
    store.require(encoder.model_hash)
    embedded = encoder.embed(list(query))
    calibration = read_calibration(folder, encoder.model_hash) if part is None else None
    found, told = _found(store, embedded, top, part, camera or [], where, approximate)
    results = [
        _result(store, path, rows.tolist(), values.tolist(), calibration, false_accepts, prior)
        for path, rows, values in zip(query, *found, strict=True)
    ]
    if part is not None:
        told += f"; {part} alone: similarities of one part have no probabilities"
    elif calibration is None:
        told += f"; no probabilities: dgreid calibrate --run {folder.name}"
    if form == "json":
        emit(json.dumps({"gallery": str(gallery), "how": told, "queries": results}, indent=1) + "\n")
    else:
        for result in results:
            _show(result)
        say(told)
    if html:
        write_text(html, _page(results, query, encoder, told))
        say(f"pictures: {html}", err=form == "json")


def _found(
    store: "EmbeddingStore",
    embedded: "Embeddings",
    top: int,
    part: str | None,
    cameras: list[str],
    where: str | None,
    approximate: bool | None,
) -> "tuple[Found, str]":
    """The result, and how it was found."""
    from reid.inference.similarity import Comparison
    from reid.retrieval.approximate import ApproximateSearch, read_record
    from reid.retrieval.search import exact_search

    conditions = [f"({where})"] if where is not None else []
    if cameras:
        listed = ", ".join("'" + name.replace("'", "''") + "'" for name in cameras)
        conditions.append(f"camera in ({listed})")
    narrowed = bool(conditions) or part is not None
    if approximate and narrowed:
        raise UsageError("parts and conditions are searched exactly", fix="leave out --approximate")
    record = None
    if approximate or (approximate is None and len(store) > EXACT_ROWS and not narrowed):
        record = read_record(store)
        if approximate and record is None:
            raise UsageError("the gallery has no approximate index", fix=f"dgreid index {store.folder} --approximate")
    if record is not None:
        found = ApproximateSearch.open(store, record).search(embedded.features, embedded.visibility, top)
        return found, f"approximate search of {len(store):,} images, recall@10 {record.recall:.3f}"
    allowed = store.where(" and ".join(conditions)) if conditions else None
    found = exact_search(
        store,
        embedded.features,
        embedded.visibility,
        top,
        comparison=Comparison(store.kind.parts, part),
        allowed=allowed,
    )
    searched = len(store) if allowed is None else int(allowed.sum())
    return found, f"exact search of {searched:,} images"


def _result(
    store: "EmbeddingStore",
    query: Path,
    rows: list[int],
    values: list[float],
    calibration: "Calibration | None",
    false_accepts: str,
    prior: float,
) -> dict[str, Any]:
    from reid.inference.embeddings import FACTS

    hits = [row for row in rows if row >= 0]
    facts = store.facts.select([name for name in FACTS.names if name not in ("size_bytes", "modified_ns")])
    found = facts.take(hits).to_pylist() if hits else []
    for rank, (one, value) in enumerate(zip(found, values, strict=False), 1):
        one |= {"rank": rank, "similarity": round(value, 6)}
        if calibration:
            one["probability"] = round(float(calibration.probability(value, prior)), 4)
            one["same_person"] = bool(value >= calibration.threshold(false_accepts))
    result: dict[str, Any] = {"query": str(query), "found": found}
    if calibration:
        result["unknown"] = not any(one["same_person"] for one in found)
        result["false_accepts"] = false_accepts
    return result


def _show(result: dict[str, Any]) -> None:
    probable = "unknown" in result
    columns = [
        "rank",
        "similarity",
        *(["probability", "same person"] if probable else []),
        "identity",
        "camera",
        "image",
    ]
    rows = [
        [
            one["rank"],
            f"{one['similarity']:.3f}",
            *([f"{one['probability']:.2f}", "yes" if one["same_person"] else ""] if probable else []),
            one["identity"],
            one["camera"],
            one["path"] if one["frame"] is None else f"{one['path']} frame {one['frame']}",
        ]
        for one in result["found"]
    ]
    print_table(columns, rows, title=f"{result['query']}: unknown" if result.get("unknown") else str(result["query"]))


def _page(results: list[dict[str, Any]], queries: list[Path], encoder: "PersonEncoder", told: str) -> str:
    from reid.report.search_page import Shown, render_strips
    from shared.images import UnreadableImageError, load_image

    def shown(path: Path, mark: str, caption: str, whole: bool) -> Shown:
        try:
            image = load_image(path) if whole else None
        except UnreadableImageError:
            image = None
        masks = encoder.part_masks(image)[0] if image is not None else None
        return Shown(path.name, mark, caption, image, masks)

    strips, place = {}, cache(root_path)
    for number, (result, path) in enumerate(zip(results, queries, strict=True), 1):
        tiles = [shown(path, "query", "", True)]
        for one in result["found"]:
            words = [f"similarity {one['similarity']:.3f}"]
            words += [f"probability {one['probability']:.2f}"] if "probability" in one else []
            words += [f"{name} {one[name]}" for name in ("identity", "camera") if one[name] is not None]
            tiles.append(
                shown(place(one["folder"]) / one["path"], str(one["rank"]), ", ".join(words), one["frame"] is None)
            )
        strips[f"{number}. {path.name}" + (": unknown" if result.get("unknown") else "")] = tiles
    return render_strips("Search", told, strips, encoder.parts)
