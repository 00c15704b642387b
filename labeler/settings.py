"""Settings of the labelling service from LABELER_* environment variables; read by a function, never at import."""

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from labeler.grounding.ground import MissingParts
from labeler.grounding.prompts import PromptMode
from labeler.pocket import NAME as POCKET_MODEL
from shared.errors import ConfigError

PREFIX = "LABELER_"
_IN_URL = re.compile(r"//[^/@\s]*@")  # name and password
EngineName = Literal["body_prior", "vllm_server", "local"]
VLLM_ADDRESS = "http://127.0.0.1:8000"  # vLLM's default
SERVED_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"


class Settings(BaseSettings):
    """All settings with their defaults; `port` is read from LABELER_PORT."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    upstream_url: str | None = None  # OpenAI-compatible server, with or without /v1; several: a,b,c
    # By default the shipped model; with the address of a server, that server.
    engine: EngineName = Field(default_factory=lambda got: "vllm_server" if got.get("upstream_url") else "local")
    # As the server lists it; for `local` a folder, a hub name, or the shipped model.
    model: str = Field(default_factory=lambda got: POCKET_MODEL if got.get("engine") == "local" else SERVED_MODEL)
    host: str = "127.0.0.1"  # this machine only; to open it to others set an api_key, too
    port: int = Field(default=8300, ge=0, le=65535)
    api_key: SecretStr | None = None  # required from clients as `Authorization: Bearer <key>`

    max_body_bytes: int = Field(default=16 * 2**20, ge=1)
    max_pixels: int = Field(default=12_000_000, ge=1)  # per image, read from its header
    max_images: int = Field(default=64, ge=1)  # per request
    max_requests: int = Field(default=32, ge=1)  # in flight; more are answered 429
    max_images_in_work: int = Field(default=32, ge=1)  # decoded or with the engine at the same time
    body_timeout_s: float = Field(default=30.0, gt=0)  # to receive a request
    request_timeout_s: float = Field(default=300.0, gt=0)  # to answer it
    drain_s: int = Field(default=60, ge=0)  # after SIGTERM, to finish requests in flight
    max_attempts: int = Field(default=4, ge=1, le=8)  # semantic attempts per image
    parts_file: Path | None = None  # YAML with parts beside head, upper body and legs
    missing_parts: MissingParts = "absent"  # or `prior`: parts that are not visible get the box of the body prior
    second_look: bool = False  # ask about the mirrored image, too, and store the agreement

    upstream_api_key: SecretStr | None = None
    family: str | None = None  # of the model; by default from its configuration, its name or the server's model list
    prompt_mode: PromptMode | None = None  # joint if the family can answer it, else per_part
    logprobs: bool = False  # request token log-probabilities, for a score of each box
    connect_timeout_s: float = Field(default=5.0, gt=0)
    probe_timeout_s: float = Field(default=10.0, gt=0)  # to list the models of a server
    answer_timeout_s: float = Field(default=120.0, gt=0)
    transport_attempts: int = Field(default=3, ge=1)  # requests per question

    device: str = "auto"  # of the engine `local`; auto: an accelerator if there is one, else cpu
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = (
        "auto"  # auto: that of the checkpoint, on the CPU float32
    )
    local_batch: int = Field(default=16, ge=1)  # largest batch of questions of the engine `local`
    allow_download: bool = False  # of models that are not in the local Hugging Face cache

    @property
    def upstream_urls(self) -> list[str]:
        """Root addresses of the model servers."""
        urls = VLLM_ADDRESS if self.upstream_url is None else self.upstream_url
        return [url.strip().rstrip("/").removesuffix("/v1") for url in urls.split(",") if url.strip()]


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment; `overrides` take precedence.

    Raises ConfigError for invalid values, unknown overrides and unknown LABELER_* variables.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    if unknown := sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known):
        raise ConfigError(
            f"unknown settings in the environment: {', '.join(unknown)}", fix=f"known: {', '.join(sorted(known))}"
        )
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as err:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in err.errors())
        raise ConfigError(
            f"settings of the labeler: {faults}", fix=f"correct the {PREFIX}* variable or the argument"
        ) from err


def describe(settings: Settings) -> list[tuple[str, str, str]]:
    """(variable, value, "set" or "default") of every setting; secrets are masked, also those inside URLs."""
    return [
        (
            PREFIX + name.upper(),
            _IN_URL.sub("//**********@", str(getattr(settings, name))),
            "set" if name in settings.model_fields_set else "default",
        )
        for name in Settings.model_fields
    ]
