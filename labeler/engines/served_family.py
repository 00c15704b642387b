"""Which family a served model belongs to, when its name may be anything (`--served-model-name mine`)."""

import json
from pathlib import Path

import httpx

from labeler.grounding.coordinates import ModelFamily, family_of
from labeler.settings import Settings
from shared.errors import ConfigError

CONFIG = "config.json"


def family_of_served(settings: Settings, transport: httpx.BaseTransport | None = None) -> ModelFamily:
    """The family from LABELER_FAMILY, the configuration in the model's folder, its name, or what the server says it is.

    Args:
        transport: replaces the network in tests.

    Raises ConfigError when none of them tells.
    """
    if settings.family:
        return family_of(settings.model, settings.family)
    for texts in (lambda: (configured_as(settings.model), settings.model), lambda: _roots(settings, transport)):
        for text in texts():
            try:
                return family_of(text)
            except ConfigError:
                continue
    return family_of(settings.model)


def configured_as(model: str) -> str:
    """Type and architecture in the configuration of a model's folder; empty when there is none."""
    try:
        config = json.loads((Path(model) / CONFIG).read_text(encoding="utf-8"))
        return " ".join([str(config.get("model_type", "")), *map(str, config.get("architectures") or ())])
    except (OSError, ValueError, AttributeError, TypeError):
        return ""


def _roots(settings: Settings, transport: httpx.BaseTransport | None) -> list[str]:
    """What the first server says that its model was loaded from, vLLM's `root`, and the configuration there."""
    key = settings.upstream_api_key
    try:
        with httpx.Client(
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            timeout=settings.connect_timeout_s,
            transport=transport,
            trust_env=False,
        ) as http:
            listed = http.get(f"{settings.upstream_urls[0]}/v1/models").json()["data"]
        roots = [str(entry["root"]) for entry in listed if entry.get("id") == settings.model and entry.get("root")]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return []  # not up, or not vLLM: then the name has to say it
    return [*map(configured_as, roots), *roots]
