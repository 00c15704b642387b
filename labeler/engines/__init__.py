"""Engines answer questions about an image: a vLLM server or several, a model in this process, the body prior."""

from typing import assert_never

from labeler.grounding.engine import Engine
from labeler.settings import Settings
from shared.errors import ConfigError


def build_engine(settings: Settings) -> Engine:
    """The engine that the settings name; only its own libraries are imported.

    Raises ConfigError when the settings do not fit it, or a library that it needs is not installed.
    """
    match settings.engine:
        case "body_prior":
            from labeler.engines.body_prior import BodyPrior

            return BodyPrior()
        case "vllm_server":
            from labeler.engines.vllm_server import VllmServer

            return VllmServer.from_settings(settings)
        case "local":
            try:
                from labeler.engines.local_transformers import LocalTransformers
            except ImportError as err:
                fix = "pip install 'dgreid[local]', or use LABELER_ENGINE=vllm_server"
                raise ConfigError(f"the engine `local` needs a library that is not installed ({err})", fix=fix) from err
            return LocalTransformers.from_settings(settings)
    assert_never(settings.engine)
