"""`python -m labeler serve` runs the service, `python -m labeler settings` prints its settings."""

import logging
import sys

import typer
import uvicorn

from labeler.engines.vllm_processes import started_vllm
from labeler.service.app import create_app
from labeler.service.json_log import log_as_json
from labeler.service.limits import BACKLOG, SparseAcceptLog, bounded_http
from labeler.settings import LOOPBACK, describe, load_settings
from shared.errors import DgreidError
from shared.workspace import Workspace

cli = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)


@cli.command()
def serve() -> None:
    """Run the service with the LABELER_* settings until SIGINT or SIGTERM; requests in flight are finished."""
    settings = load_settings()
    log_as_json()
    log = logging.getLogger(__name__)
    logging.getLogger("asyncio").addFilter(SparseAcceptLog())
    shown = {variable: {"value": value, "origin": origin} for variable, value, origin in describe(settings)}
    log.info("settings", extra={"fields": {"settings": shown}})
    if settings.host not in LOOPBACK and settings.api_key is None:
        log.warning("listening on %s without an API key; set LABELER_API_KEY", settings.host)
    with started_vllm(settings, Workspace.from_environment().on_disk / "logs") as settings:
        uvicorn.run(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            http=bounded_http(settings.max_connections),
            ws="none",
            backlog=BACKLOG,
            timeout_graceful_shutdown=settings.drain_s,
            log_config=None,
            access_log=False,  # labeler.service.logs writes one line per request
            server_header=False,
        )


@cli.command(name="settings")
def show_settings() -> None:
    """Print every setting with its value and origin; secrets are masked."""
    for variable, value, origin in describe(load_settings()):
        typer.echo(f"{variable}={value}  ({origin})")


def main() -> None:
    try:
        cli()
    except DgreidError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(err.exit_code)


if __name__ == "__main__":
    main()
