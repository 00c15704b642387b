"""The interface of engines, which answer "where is this part?" for one image, and their errors."""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from PIL import Image

from labeler.grounding.retry import Attempt
from shared.errors import DgreidError
from shared.geometry import Box
from shared.schemas import LabelStatus

# Id of the HTTP request that is being answered: engines send it on, log lines carry it. Empty outside of one.
current_request_id: ContextVar[str] = ContextVar("request_id", default="")


class EngineError(DgreidError):
    """The engine gave no answer, and asking again will not help (e.g. the request was refused)."""


class EngineAwayError(EngineError):
    """The engine gave no answer now, but may later.

    Args:
        retry_after_s: seconds in the Retry-After of its response; None without one.
    """

    def __init__(
        self, what: str, *, fix: str, path: Path | str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(what, fix=fix, path=path)
        self.retry_after_s = retry_after_s


class EngineDownError(EngineAwayError):
    """It could not be reached, or failed."""


class EngineSlowError(EngineAwayError):
    """It did not answer in time."""


class EngineUnfitError(EngineError):
    """Every box of this engine would be wrong, so the run must stop instead of writing false labels."""


@dataclass(frozen=True)
class PartOutcome:
    """An engine's answer about one part, before the box checks.

    Args:
        status: OK exactly when there are boxes.
        raw_box: four numbers as answered, in the space of the EngineAnswer.
        image_box: the same box in pixels of the original image; it may leave the image or be reversed.
        score: confidence in 0..1; None when the engine has none.
        flags: set by the engine, kept in the label row.
        raw_text: the answer's text, at most RAW_TEXT_LIMIT characters.
    """

    status: LabelStatus
    raw_box: tuple[float, ...] | None = None
    image_box: Box | None = None
    score: float | None = None
    flags: tuple[str, ...] = ()
    raw_text: str | None = None


@dataclass(frozen=True)
class EngineAnswer:
    """The outcome of every part that was asked for, the space of the raw boxes, and the tokens used."""

    parts: Mapping[str, PartOutcome]
    space: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class EngineIdentity:
    """What a label run is bound to: one run never mixes rows of different identities."""

    engine: str
    model: str
    prompt_version: str


class Engine(Protocol):
    """One way to ground body parts. Safe to use from many tasks of one event loop."""

    @property
    def identity(self) -> EngineIdentity: ...

    async def ground(self, image: Image.Image, parts: Sequence[str], attempt: Attempt) -> EngineAnswer:
        """Ask once for `parts` of an RGB image. Raises EngineError, EngineAwayError when a retry may help."""
        ...

    async def check(self) -> None:
        """Raises EngineError unless the engine can answer now."""
        ...

    async def close(self) -> None: ...


class UpstreamState(NamedTuple):
    """One server behind an engine: host and port, whether it is in use, and its questions in flight."""

    name: str
    up: bool
    in_flight: int


@runtime_checkable
class HasUpstreams(Protocol):
    """An engine that asks other servers."""

    def upstreams(self) -> Sequence[UpstreamState]: ...
