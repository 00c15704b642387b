"""Runs an application of this project: uvicorn within the limits of `limits`."""

import logging
import os
import socket
import sys
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from labeler.service.limits import SparseAcceptLog, bounded_http
from labeler.settings import LOOPBACK, Settings

ACCEPTED_AT_ONCE = 128  # connections that asyncio accepts in a row, in which nobody is answered
WAITING = 1024  # connections that may wait to be accepted: one that finds no room asks again after a second
STARTUP_FAILURE = 3  # exit code, as uvicorn's own command has it


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:  # asyncio takes one number for both
            for listening in server.sockets:
                with socket.socket(fileno=os.dup(listening.fileno())) as same:
                    same.listen(WAITING)


def serve(app: FastAPI, settings: Settings, port: int) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are finished. Exits the process when it cannot be started."""
    logging.getLogger("asyncio").addFilter(SparseAcceptLog())
    if settings.host not in LOOPBACK and settings.api_key is None:
        logging.getLogger(__name__).warning(
            "listening on %s without an API key; set LABELER_API_KEY", settings.host
        )  # fmt: skip
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=port,
        http=bounded_http(settings.max_connections),
        ws="none",
        backlog=ACCEPTED_AT_ONCE,
        timeout_graceful_shutdown=settings.drain_s,
        log_config=None,
        access_log=False,  # labeler.service.logs writes one line per request
        server_header=False,
    )
    server = _Server(config)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)
