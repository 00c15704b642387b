"""Engines by name."""

from collections.abc import Callable

from labeler.engines.base import Engine
from labeler.engines.body_prior import BodyPrior
from labeler.engines.vllm_server import VllmServer
from labeler.settings import EngineName, Settings

ENGINES: dict[EngineName, Callable[[Settings], Engine]] = {
    "body_prior": lambda settings: BodyPrior(),
    "vllm_server": VllmServer.from_settings,
}


def build_engine(settings: Settings) -> Engine:
    """The engine that the settings name. Raises ConfigError when they do not fit it."""
    return ENGINES[settings.engine](settings)
