"""`review`: the page on which labels are looked at and corrected, and what a trained model gets wrong."""

import getpass
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import typer

from pipelines.datasets import scan, split_names
from pipelines.runs import run_folder
from pipelines.terminal import say
from shared.datasets import locate
from shared.errors import ConfigError, DataError, UsageError
from shared.labels import choose_label_run, label_runs
from shared.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from labeler.review.ranked import FeatureMap, RankedTarget

HOST = "127.0.0.1"
MAX_REVIEWER = 60  # characters


def review(
    dataset: Annotated[
        str | None, typer.Argument(help="data set name, or several joined by +; default: the targets of --run")
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="what the grid opens with: a SELECT or a canned query's name")
    ] = None,
    label_run: Annotated[
        str | None, typer.Option(help="the label run to look at; default: the only one there is")
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(help="a scored training run, whose failures are shown; again for others to compare it with"),
    ] = None,
    reviewer: Annotated[str | None, typer.Option(help="the name in corrected rows; default: of your account")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="on the loopback interface")] = 8310,
) -> None:
    """Open the page on which labels are looked at and corrected, and a trained model's failures.

    Corrections are saved as they are made, into the label run <run>.corrected, which training then prefers. The page
    is for this machine only, and for whoever has the printed address. Ctrl+C ends it.
    """
    workspace = Workspace.from_environment()
    folders = [run_folder(workspace, name) for name in run or []]
    name = _reviewer(reviewer)
    names = split_names(dataset, workspace) if dataset else []
    if not names and not folders:
        raise ConfigError("no data set was named", fix="dgreid review <data set>, or --run <training run>")

    from labeler.review.access import new_token
    from labeler.review.app import create_app
    from labeler.review.corrections import run_to_continue
    from labeler.review.pictures import Pictures
    from labeler.review.tables import LabelTables

    targets = _targets(folders, workspace) if folders else []
    names = list(dict.fromkeys([*names, *(target.dataset for target in targets)]))
    for one in names:
        scan(one, workspace)
    chosen = None
    if label_run or label_runs(workspace.labels, names):
        chosen = run_to_continue(workspace.labels, choose_label_run(label_run, names, workspace.labels), names)
    elif not folders:
        choose_label_run(None, names, workspace.labels)  # says what to do
    tables = LabelTables(workspace, names, chosen)
    pictures = Pictures(
        {one: locate(one, workspace.data_root) for one in names}, workspace.on_disk / "review" / "thumbnails"
    )
    token = new_token()
    app = create_app(
        tables,
        pictures,
        reviewer=name,
        token=token,
        port=port,
        targets=targets,
        feature_maps=(lambda: _feature_maps(folders[0], targets, workspace)) if folders else None,
    )
    _serve(app, port, f"/{'failures' if folders and not dataset else ''}?{urlencode(_first(token, query))}")


def _first(token: str, query: str | None) -> dict[str, str]:
    return {"token": token} | ({"q": query} if query else {})


def _reviewer(given: str | None) -> str:
    try:
        name = (given or getpass.getuser()).strip()
    except (KeyError, OSError):
        raise ConfigError("your account has no name", fix="--reviewer <name>") from None
    if not name or len(name) > MAX_REVIEWER or not name.isprintable():
        raise ConfigError("not a reviewer's name", fix=f"--reviewer <up to {MAX_REVIEWER} printable characters>")
    return name


def _serve(app: object, port: int, start: str) -> None:
    import uvicorn

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as err:
        raise UsageError(f"port {port} cannot be used ({err.strerror})", fix="--port <another one>") from err
    with listener:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            ws="none",
            log_level="warning",
            access_log=False,  # addresses hold the token
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        say(f"open http://{HOST}:{port}{start}\nCtrl+C ends the page; every correction is saved already")
        uvicorn.Server(config).run(sockets=[listener])


# ---- trained runs: from the files of reid to what the page takes


def _targets(folders: Sequence[Path], workspace: Workspace) -> list["RankedTarget"]:
    """Every target of every run, trained and untrained. Raises DataError for a run that was not scored."""
    from reid.evaluation.results import read_results

    found = []
    for folder in folders:
        results = read_results(folder)
        for dataset in results.targets:
            scan(dataset, workspace)
            for state in results.scores[dataset]:
                try:
                    found.append(_target(folder, dataset, state, workspace))
                except DataError as err:
                    say(f"{folder.name}, {state}, {dataset} is left out: {err}", err=True)
    if not found:
        raise DataError(
            "no ranked gallery of this run can be shown", path=folders[0], fix=f"dgreid eval --run {folders[0].name}"
        )
    return found


def _target(folder: Path, dataset: str, state: str, workspace: Workspace) -> "RankedTarget":
    import numpy as np

    from labeler.review.ranked import RankedTarget
    from reid.config import read_config
    from reid.evaluation.results import read_arrays, read_masks, read_queries, read_results
    from reid.protocols.protocol import EvaluationSplit
    from reid.protocols.splits import stored_splits
    from shared.manifest import read_manifest

    results, rows = read_results(folder), read_manifest(workspace.manifest(dataset))
    queries = read_queries(folder, results, dataset, state)
    paths = queries.paths.tolist()
    by_path = {row.path: row for row in rows}
    if missing := [path for path in paths if path not in by_path]:
        raise DataError(
            f"{missing[0]} is no longer in the data set", path=folder, fix=f"dgreid eval --run {folder.name}"
        )
    images = [by_path[path] for path in paths]
    place = {path: number for number, path in enumerate(paths)}
    fixed = EvaluationSplit(
        tuple(row for row in rows if row.split == "query"),
        tuple(row for row in rows if row.split == "gallery"),
        str(results.tests.get(dataset, {}).get("rule", "")),
    )
    splits = stored_splits(folder, dataset, rows, [fixed])
    gallery = np.zeros((int(queries.split.max()) + 1, len(paths)), bool)
    for number, split in enumerate(splits[: len(gallery)]):
        gallery[number, [place[row.path] for row in split.gallery if row.path in place]] = True
    features = masks = None
    try:
        stored = read_arrays(
            folder / "embeddings" / f"{dataset}.{state}.npz", ["features", "paths", "model_sha256"], fix=""
        )
        if stored["paths"].tolist() == paths and str(stored["model_sha256"]) == queries.model_sha256:
            features = stored["features"].astype(np.float32)
        if state == "trained":
            masks = dict(zip(*read_masks(folder, dataset), strict=True))
    except DataError as err:
        say(f"{folder.name}, {state}, {dataset}: {err.what} [{err.path}]", err=True)
    parts = tuple(read_config(folder).model.parts)
    return RankedTarget(
        name=f"{folder.name}, {state}",
        dataset=dataset,
        image_ids=[row.image_id for row in images],
        identities=np.array([-1 if row.identity is None else row.identity for row in images], np.int64),
        cameras=np.array([-1 if row.camera is None else row.camera for row in images], np.int64),
        gallery=gallery,
        split=queries.split,
        query=queries.query,
        average_precision=queries.average_precision,
        first_rank=queries.first_rank,
        ranked=queries.ranked,
        correct=queries.correct,
        features=features,
        parts=parts,
        masks={by_path[path].image_id: mask for path, mask in (masks or {}).items() if path in by_path and mask.size},
    )


def _feature_maps(folder: Path, targets: Sequence["RankedTarget"], workspace: Workspace) -> list["FeatureMap"]:
    """UMAP of the trained model's gallery features of all its targets together; made once and kept in the run folder.

    Raises UsageError when umap-learn is not installed or there are too few images.
    """
    import numpy as np

    from labeler.review.ranked import FeatureMap
    from reid.evaluation.results import read_arrays, read_results, write_arrays
    from shared.manifest import read_manifest

    chosen = [one for one in targets if one.name == f"{folder.name}, trained" and one.features is not None]
    if not chosen:
        raise UsageError("the features of the trained model are not stored", fix=f"dgreid eval --run {folder.name}")
    inside = [np.flatnonzero(one.gallery.any(axis=0)) for one in chosen]
    ids = [one.image_ids[image] for one, images in zip(chosen, inside, strict=True) for image in images]
    sha256 = read_results(folder).models.get("trained", "")
    path = folder / "embeddings" / "map.npz"
    try:
        stored = read_arrays(path, ["places", "image_ids", "model_sha256"], fix="")
        fits = stored["image_ids"].tolist() == ids and str(stored["model_sha256"]) == sha256
    except DataError:
        fits = False
    if fits:
        places = stored["places"]
    else:
        features = [
            one.features[images] for one, images in zip(chosen, inside, strict=True) if one.features is not None
        ]
        places = _umap(np.concatenate(features))
        write_arrays(path, places=places, image_ids=np.array(ids), model_sha256=np.array(sha256))
    found, start = [], 0
    for one, images in zip(chosen, inside, strict=True):
        rows = {row.image_id: row for row in read_manifest(workspace.manifest(one.dataset))}
        mine = [rows[one.image_ids[image]] for image in images]
        found.append(
            FeatureMap(
                one.dataset,
                [row.image_id for row in mine],
                places[start : start + len(mine)],
                {
                    "data set": [one.dataset] * len(mine),
                    "camera": [f"{one.dataset} {row.camera_name or row.camera}" for row in mine],
                    "identity": [str(row.identity_name or row.identity or row.kind) for row in mine],
                },
            )
        )
        start += len(mine)
    return found


def _umap(features: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """[N, F] -> float32 [N, 2], always the same."""
    try:
        from umap import UMAP
    except ImportError as err:
        raise UsageError("the map needs umap-learn", fix="pip install 'dgreid[review]'") from err
    count = len(features)
    if count < 5:
        raise UsageError(f"a map needs more than {count} images", fix="score a larger data set")
    start = "random" if count < 20 else "spectral"  # a spectral start needs more points than dimensions
    made = UMAP(n_neighbors=min(15, count - 1), metric="cosine", random_state=0, init=start)
    places: NDArray[np.float32] = made.fit_transform(features).astype("float32")
    return places
