"""`serve`: the labelling service, or with --run the service of a trained model."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from pipelines.embed import ANYWHERE
from pipelines.runs import run_folder
from shared.errors import UsageError
from shared.workspace import Workspace

PORT = 8301


def serve(
    run: Annotated[
        str | None,
        typer.Option(help="serve this run's model (/v1/embed, compare, search); default: the labeler"),
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option(help="folder of embeddings for /v1/search, or s3://bucket/...", **ANYWHERE)
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="with --run; default: LABELER_PORT, or 8301")
    ] = None,
    device: Annotated[str, typer.Option(help="of the run's model: auto, cpu, cuda, mps")] = "auto",
) -> None:
    """Run a service on this machine until SIGINT or SIGTERM: the labeler's, or with --run that of a trained model.

    Host, key and limits are the LABELER_* settings.
    """
    if run is None:
        if gallery is not None:
            raise UsageError("--gallery needs a model", fix="name its run with --run")
        from labeler.__main__ import serve as serve_labeler

        serve_labeler()
        return
    folder = run_folder(Workspace.from_environment(), run)

    import os

    from labeler.service.json_log import log_as_json
    from labeler.service.serving import serve as run_server
    from labeler.settings import load_settings
    from pipelines.person_service import PersonService, create_app
    from reid.evaluation.calibration import read_calibration
    from reid.inference.embeddings import EmbeddingStore
    from reid.inference.encoder import PersonEncoder

    settings = load_settings()
    encoder = PersonEncoder.load(folder, device=device)
    store = EmbeddingStore(gallery) if gallery is not None else None
    service = PersonService(settings, encoder, store, read_calibration(folder, encoder.model_hash))
    log_as_json()
    log = logging.getLogger(__name__)
    log.info(
        "serving", extra={"fields": {"run": folder.name, "model_hash": encoder.model_hash, "gallery": str(gallery)}}
    )
    chosen = port if port is not None else settings.port if os.environ.get("LABELER_PORT") else PORT
    run_server(create_app(service), settings, chosen)
