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
_IN_URL = re.compile(r"//(?:(?!,\s*https?://).)*@", re.DOTALL)  # name and password, whatever characters they have
_IN_QUERY = re.compile(r"\?[^,]*")
_KEY = re.compile(r"[\x21-\x7e]+")  # what a header can carry
EngineName = Literal["body_prior", "vllm_server", "local"]
LOOPBACK = ("127.0.0.1", "::1", "localhost")
VLLM_ADDRESS = "http://127.0.0.1:8000"  # vLLM's default
SERVED_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"


class Settings(BaseSettings):
    """All settings with their defaults; `port` is read from LABELER_PORT."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    upstream_url: str | None = None  # OpenAI-compatible server, with or without /v1; several: a,b,c
    start_vllm: bool = False  # start vLLM servers on this machine for the model, and take them down at the end
    vllm_replicas: int = Field(default=0, ge=0)  # of them; 0: one per GPU, one where there is none
    vllm_ready_s: float = Field(default=1800.0, gt=0)  # to load the model, at most
    # By default the shipped model; with a server, that server.
    engine: EngineName = Field(
        default_factory=lambda got: "vllm_server" if got.get("upstream_url") or got.get("start_vllm") else "local"
    )
    # As the server lists it; for `local` a folder, a hub name, or the shipped model.
    model: str = Field(default_factory=lambda got: POCKET_MODEL if got.get("engine") == "local" else SERVED_MODEL)
    host: str = "127.0.0.1"  # this machine only; to open it to others set an api_key, too
    port: int = Field(default=8300, ge=0, le=65535)
    api_key: SecretStr | None = None  # required from clients as `Authorization: Bearer <key>`

    max_body_bytes: int = Field(default=16 * 2**20, ge=1)
    max_pixels: int = Field(default=12_000_000, ge=1)  # per image, read from its header
    max_side: int = Field(default=8192, ge=1)  # width or height of an image, in pixels
    max_images: int = Field(default=64, ge=1)  # per request
    max_requests: int = Field(default=32, ge=1)  # in flight; more are answered 429
    max_images_in_work: int = Field(default=32, ge=1)  # decoded or with the engine at the same time
    max_pixels_in_work: int = Field(default=12_000_000, ge=1)  # of images over a megapixel, decoded at the same time
    max_connections: int = Field(default=512, ge=1)  # open ones; at most half of the process's file descriptors
    allowed_hosts: str = ""  # names that clients call this service by (`Host`), beside its own addresses: a,b; or *
    body_timeout_s: float = Field(default=30.0, gt=0)  # to receive a request
    request_timeout_s: float = Field(default=300.0, gt=0)  # to answer it
    min_calibration_iou: float = Field(default=0.5, ge=0, le=1)  # mean, with the drawn person; below it: not ready
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

    ray_min_actors: int = Field(default=1, ge=1)  # of `dgreid label --cluster`, each with an engine
    ray_max_actors: int = Field(default=0, ge=0)  # 0: as many as the cluster has, or can get, room for
    ray_cpus: float = Field(default=1.0, ge=0)  # of an actor
    ray_gpus: float | None = Field(
        default=None, ge=0
    )  # of an actor; default: 1 if its engine is a model, 0 without any

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


def check_key(key: SecretStr, name: str) -> None:
    """Raises ConfigError, without the key, unless it is of printable ASCII characters and no blanks."""
    if not _KEY.fullmatch(key.get_secret_value()):
        raise ConfigError(
            f"{name} has blanks, line ends or characters outside ASCII, or is empty",
            fix="use printable ASCII characters, without blanks around or inside them",
        )


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
        settings = Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as err:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in err.errors())
        raise ConfigError(
            f"settings of the labeler: {faults}", fix=f"correct the {PREFIX}* variable or the argument"
        ) from None  # the cause quotes the values, and a value may be a secret
    if settings.start_vllm and (settings.upstream_url or settings.engine != "vllm_server"):
        given = PREFIX + ("UPSTREAM_URL" if settings.upstream_url else f"ENGINE={settings.engine}")
        raise ConfigError(f"{PREFIX}START_VLLM and {given} exclude each other", fix="set one of them")
    for name in ("api_key", "upstream_api_key"):
        if (key := getattr(settings, name)) is not None:
            check_key(key, PREFIX + name.upper())
    return settings


def masked(text: str) -> str:
    """The text with name, password and query of every URL in it replaced."""
    if "//" not in text:
        return text
    return _IN_QUERY.sub("?**********", _IN_URL.sub("//**********@", text))


def describe(settings: Settings) -> list[tuple[str, str, str]]:
    """(variable, value, "set" or "default") of every setting; secrets are masked, also those inside URLs."""
    return [
        (
            PREFIX + name.upper(),
            masked(str(getattr(settings, name))),
            "set" if name in settings.model_fields_set else "default",
        )
        for name in Settings.model_fields
    ]
