"""A message to a webhook when labelling ends, fails or is interrupted: numbers and names, no image or answer."""

import asyncio
import logging
import socket

import httpx
from pydantic import SecretStr

from labeler.annotation.annotate import Summary
from shared.errors import ConfigError, DgreidError

log = logging.getLogger(__name__)

ATTEMPTS = 3
PAUSE_S = 2.0
TIMEOUT_S = 10.0
WORDS = 200  # characters of a failure


def check_webhook(url: SecretStr) -> None:
    """Raises ConfigError, without the address, which is a secret itself, unless it is an HTTP URL."""
    try:
        parsed = httpx.URL(url.get_secret_value())
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError("the webhook's address is not an HTTP URL", fix="set DGREID_WEBHOOK_URL=https://...")


def message(dataset: str, outcome: Summary | BaseException) -> dict[str, object]:
    """The JSON that is sent. `text` and `content` are what Slack, Mattermost, Teams and Discord show.

    Of a failure only our own words are sent, up to its first colon: what follows may quote what a server answered.
    """
    fields: dict[str, object] = {"dataset": dataset, "host": socket.gethostname()}
    if isinstance(outcome, Summary):
        event = "interrupted" if outcome.interrupted else "finished"
        fields |= {
            "label_run": outcome.label_run,
            "images": outcome.images,
            "done_now": outcome.done_now,
            "failed": dict(outcome.failed),
            "seconds": round(outcome.seconds, 1),
            "images_per_s": round(outcome.images_per_s, 2),
        }
        told = f"{outcome.images:,} images, {outcome.failed.total():,} of {outcome.done_now:,} new ones failed"
    else:
        event = "failed"
        told = outcome.what.partition(":")[0][:WORDS] if isinstance(outcome, DgreidError) else type(outcome).__name__
        fields["reason"] = told
    text = f"dgreid label {dataset}: {event}, {told}"
    return {"event": event, "text": text, "content": text, **fields}


def notify(
    url: SecretStr | None, content: dict[str, object], transport: httpx.AsyncBaseTransport | None = None
) -> None:
    """Send it, in at most ATTEMPTS; what cannot be sent is a warning in the log and nothing else."""
    if url is not None:
        asyncio.run(_send(url.get_secret_value(), content, transport))


async def _send(url: str, content: dict[str, object], transport: httpx.AsyncBaseTransport | None) -> None:
    reason = ""
    async with httpx.AsyncClient(timeout=TIMEOUT_S, transport=transport) as client:
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(PAUSE_S)
            try:
                response = await client.post(url, json=content)
            except httpx.HTTPError as err:
                reason = type(err).__name__  # its text may hold the address
                continue
            if response.is_success:
                return
            reason = f"HTTP {response.status_code}"
            if response.is_client_error and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                break
    log.warning("the webhook on %s was not reached: %s", httpx.URL(url).host, reason)
