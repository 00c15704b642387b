"""Engines by name."""

from collections.abc import Callable

from labeler.engines.body_prior import BodyPrior
from labeler.engines.vllm_server import VllmServer
from labeler.grounding.engine import Engine
from labeler.settings import EngineName, Settings
from shared.errors import ConfigError


def _local(settings: Settings) -> Engine:
    try:
        from labeler.engines.local_transformers import LocalTransformers  # torch: only for those who use it
    except ImportError as err:
        fix = "pip install 'dgreid[local]', or use LABELER_ENGINE=vllm_server"
        raise ConfigError(f"the engine `local` needs a library that is not here ({err})", fix=fix) from err
    return LocalTransformers.from_settings(settings)


ENGINES: dict[EngineName, Callable[[Settings], Engine]] = {
    "body_prior": lambda settings: BodyPrior(),
    "vllm_server": VllmServer.from_settings,
    "local": _local,
}


def build_engine(settings: Settings) -> Engine:
    """The engine that the settings name. Raises ConfigError when they do not fit it."""
    return ENGINES[settings.engine](settings)
