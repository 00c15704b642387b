"""`embed`: features of images into a folder of Parquet shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipelines.datasets import scan
from pipelines.runs import newest_run, run_folder
from pipelines.terminal import say
from shared.datasets import known_datasets, locate, resolve_name
from shared.errors import DataError, DgreidError, UsageError
from shared.manifest import read_manifest
from shared.object_storage import root_path
from shared.terminal import printable
from shared.workspace import Workspace

if TYPE_CHECKING:
    from reid.inference.embed_files import ImageFile, Summary
    from reid.inference.encoder import PersonEncoder

Images = Annotated[
    str, typer.Option(help="a folder of crops, a data set, a manifest (.parquet); with --detections a video or frames")
]
ANYWHERE: dict[str, Any] = {"parser": root_path, "metavar": "PATH"}  # of an option: a path, or s3://bucket/...
ON_DISK: dict[str, Any] = {"parser": lambda text: _on_disk(text), "metavar": "PATH"}
RunName = Annotated[str | None, typer.Option(help="name or path of the run; default: the newest")]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda, mps")]
FalseAcceptRate = Literal["1e-2", "1e-3", "1e-4"]  # of the thresholds that `calibrate` stores
SHOWN = 5  # unreadable images


def embed(
    images: Images,
    out: Annotated[
        Path, typer.Option(help="folder of the embeddings, e.g. people.parquet or s3://bucket/people", **ANYWHERE)
    ],
    run: RunName = None,
    detections: Annotated[
        Path | None, typer.Option(help="boxes in the video: MOT Challenge lines, or a CSV with frame, id and box")
    ] = None,
    camera: Annotated[str | None, typer.Option(help="name of the camera that took all of them")] = None,
    fps: Annotated[float | None, typer.Option(help="frames per second of a folder of frames")] = None,
    dtype: Annotated[Literal["float16", "float32"], typer.Option(help="how features are stored")] = "float16",
    batch_size: Annotated[int, typer.Option(min=1, help="images per forward pass")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="decoding threads")] = 2,
    device: DeviceName = "auto",
) -> None:
    """Features of all images of a folder, data set or video. Resumable: images that are there already are not read."""
    workspace = Workspace.from_environment()
    if detections:
        from reid.inference.video import read_crops, read_detections

        if not Path(images).exists():
            raise DataError("there is no such video or folder of frames", path=images, fix="correct --images")
        found = read_detections(detections)

        from reid.inference.embed_files import embed_crops

        crops = read_crops(Path(images), found, fps=fps)
        encoder = load_encoder(workspace, run, device)
        summary = embed_crops(
            crops, len(found), Path(images), encoder, out, camera=camera, dtype=dtype, batch_size=batch_size
        )
    else:
        files = image_files(images, workspace, camera)

        from reid.inference.embed_files import embed_files

        encoder = load_encoder(workspace, run, device)
        summary = embed_files(files, encoder, out, dtype=dtype, batch_size=batch_size, workers=workers)
    tell(summary, out)
    say(f"next: dgreid search --gallery {out} --query <crop.jpg>")


def _on_disk(text: str) -> Path:
    if "://" in text:
        raise UsageError(
            f"{printable(text)} is not on this machine", fix="write it into a folder, and copy it from there"
        )
    return Path(text)


def load_encoder(workspace: Workspace, run: str | None, device: str) -> "PersonEncoder":
    folder = run_folder(workspace, run) if run else newest_run(workspace)

    from reid.inference.encoder import PersonEncoder

    return PersonEncoder.load(folder, device=device)


def image_files(images: str, workspace: Workspace, camera: str | None = None) -> "list[ImageFile]":
    """What `--images` means: a manifest file, a folder, or the name of a data set. Raises DataError for neither."""
    from reid.inference.embed_files import files_in, files_of

    path = root_path(images, remember=True)
    if path.suffix == ".parquet" and path.is_file():
        rows = read_manifest(path)
        names = {row.dataset for row in rows}
        if len(names) != 1:
            raise DataError("a manifest of several data sets", path=path, fix="name them one after the other")
        return files_of(rows, locate(names.pop(), workspace.data_root))
    if path.is_dir():
        return files_in(path, camera)
    try:
        name = resolve_name(images, workspace.data_root)
    except UsageError as err:
        known = ", ".join(sorted(known_datasets(workspace.data_root)))
        raise DataError(
            f"{images!r} is neither a folder nor a data set", fix=f"name a folder, or one of {known}"
        ) from err
    return files_of(list(scan(name, workspace)), locate(name, workspace.data_root))


def tell(summary: "Summary", out: Path) -> None:
    """One line over what was done. Raises DgreidError naming the images that could not be read."""
    say(
        f"{out}: {summary.embedded:,} images embedded, {summary.unchanged:,} there already"
        + (f", {summary.replaced:,} of them replaced" if summary.replaced else "")
    )
    if broken := summary.unreadable:
        first = "; ".join(f"{printable(key)}: {printable(reason)}" for key, reason in list(broken.items())[:SHOWN])
        raise DgreidError(
            f"{len(broken)} images could not be read ({first}{'; ...' if len(broken) > SHOWN else ''})",
            path=out / "unreadable.txt",
            fix="replace or remove them and run the command again; everything else is embedded",
        )
