"""`python -m labeler serve` runs the service, `python -m labeler settings` prints its settings."""

import logging
import sys

import typer

from labeler.engines.vllm_processes import started_vllm
from labeler.service.app import create_app
from labeler.service.json_log import log_as_json
from labeler.service.serving import serve as run_server
from labeler.settings import describe, load_settings
from shared.errors import DgreidError
from shared.workspace import Workspace

cli = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)


@cli.command()
def serve() -> None:
    """Run the service with the LABELER_* settings until SIGINT or SIGTERM; requests in flight are finished."""
    settings = load_settings()
    log_as_json()
    log = logging.getLogger(__name__)
    shown = {variable: {"value": value, "origin": origin} for variable, value, origin in describe(settings)}
    log.info("settings", extra={"fields": {"settings": shown}})
    with started_vllm(settings, Workspace.from_environment().on_disk / "logs") as settings:
        run_server(create_app(settings), settings, settings.port)


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
