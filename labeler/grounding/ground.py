"""Ground one image: decode, ask, ask again, check the boxes. Failures are answers, not exceptions."""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from labeler.grounding.answers import ImageAnswer, PartAnswer
from labeler.grounding.box_checks import check_box, relation_flags
from labeler.grounding.engine import Engine, EngineAwayError, EngineError, EngineUnfitError, PartOutcome
from labeler.grounding.retry import ASK_AGAIN, Attempt, next_attempt
from labeler.grounding.second_look import look_again
from shared.body_prior import prior_box
from shared.geometry import Box
from shared.images import UnreadableImageError, decode, image_id_of
from shared.schemas import LabelStatus

log = logging.getLogger(__name__)

MissingParts = Literal["absent", "prior"]
SMALL_FILE = 16 * 1024  # bytes; such a crop is decoded in 0.1 ms, less than handing it to a thread takes
FILLED = "filled_prior"  # flag of a box that is the body prior's, not the engine's


@dataclass
class _Collected:
    """Answers about one image so far."""

    space: str = "none"
    parts: dict[str, PartAnswer] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut_short: bool = False  # the engine became unavailable before all parts had a usable answer


async def ground_image(
    engine: Engine,
    content: bytes,
    parts: Sequence[str],
    *,
    max_pixels: int,
    max_attempts: int,
    missing_parts: MissingParts = "absent",
    second_look: Collection[str] = (),
) -> ImageAnswer:
    """Ground `parts` of one image file.

    Args:
        missing_parts: `absent` keeps parts that the engine says are not visible without a box; `prior` gives them the
            body prior's box, score 0 and the flag FILLED. Failures are never filled, because they can be retried.
        second_look: parts that are also asked for in the mirrored image.

    An unreadable image, a refusal and an unexpected failure all end in an ImageAnswer with that status.

    Raises:
        EngineAwayError: the engine gave no answer at all now, but may later.
        EngineUnfitError: all answers of the engine would be wrong.
    """
    image_id = image_id_of(content)
    try:
        if len(content) <= SMALL_FILE:
            image = decode(content, max_pixels=max_pixels)
        else:
            image = await asyncio.to_thread(decode, content, max_pixels=max_pixels)
    except UnreadableImageError as err:
        return failed_answer(image_id, parts, LabelStatus.UNREADABLE, err.reason)
    try:
        found = await _ask(engine, image, parts, max_attempts)
        await _compare(engine, image, found, second_look)
    except (EngineAwayError, EngineUnfitError):
        raise
    except EngineError as err:
        return failed_answer(image_id, parts, LabelStatus.ENGINE_ERROR, err.what, image)
    except Exception:  # one image must not fail its batch; the log has the traceback
        log.exception("image %s: unexpected failure", image_id)
        return failed_answer(
            image_id, parts, LabelStatus.ENGINE_ERROR, "unexpected failure, see the service's log", image
        )
    rows = [found.parts[part] for part in parts]
    return ImageAnswer(
        image_id=image_id,
        width=image.width,
        height=image.height,
        space=found.space,
        parts=_related([_filled(row, image) for row in rows] if missing_parts == "prior" else rows),
        retryable=found.cut_short,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
    )


def failed_answer(
    image_id: str,
    parts: Sequence[str],
    status: LabelStatus,
    error: str,
    image: Image.Image | None = None,
    *,
    retryable: bool = False,
) -> ImageAnswer:
    """An answer in which every part failed in the same way, for the reason `error`."""
    attempts = 0 if status == LabelStatus.UNREADABLE else 1
    return ImageAnswer(
        image_id=image_id,
        width=image.width if image else 0,
        height=image.height if image else 0,
        parts=tuple(PartAnswer(part=part, status=status, attempts=attempts) for part in parts),
        error=error,
        retryable=retryable,
    )


async def _ask(engine: Engine, image: Image.Image, parts: Sequence[str], max_attempts: int) -> _Collected:
    """Ask for all parts, then again for those without a usable answer, up to `max_attempts` times in all."""
    found = _Collected()
    pending: Sequence[str] = parts
    attempt: Attempt | None = Attempt()
    while attempt:
        try:
            answer = await engine.ground(image, pending, attempt)
        except EngineError as err:
            if not found.parts or isinstance(err, EngineUnfitError):
                raise
            log.warning("no answer to attempt %d, keeping the previous one: %s", attempt.number, err.what)
            found.cut_short = isinstance(err, EngineAwayError)
            break
        found.space = answer.space
        found.prompt_tokens += answer.prompt_tokens
        found.completion_tokens += answer.completion_tokens
        for part in pending:
            found.parts[part] = _part_answer(part, answer.parts, image, attempt.number)
        pending = [part for part in parts if found.parts[part].status in ASK_AGAIN]
        attempt = next_attempt(attempt, {found.parts[part].status for part in pending}, max_attempts)
    return found


def _part_answer(part: str, outcomes: Mapping[str, PartOutcome], image: Image.Image, attempts: int) -> PartAnswer:
    outcome = outcomes[part]
    status, flags, box = outcome.status, outcome.flags, None
    if outcome.image_box is not None:
        box, check_flags = check_box(outcome.image_box, image.width, image.height)
        flags += check_flags
        status = status if box else LabelStatus.INVALID_BOX
    return PartAnswer(
        part=part,
        status=status,
        box=box,
        score=outcome.score if box else None,
        flags=flags,
        raw_box=outcome.raw_box,
        raw_text=None if box else outcome.raw_text,
        attempts=attempts,
    )


async def _compare(engine: Engine, image: Image.Image, found: _Collected, parts: Collection[str]) -> None:
    """Add the agreement of a second look, and its tokens."""
    if not parts or found.cut_short:
        return
    look = await look_again(engine, image, {part: row for part, row in found.parts.items() if part in parts})
    for part, value in look.agreement.items():
        found.parts[part] = found.parts[part].model_copy(update={"agreement": value})
    found.prompt_tokens += look.prompt_tokens
    found.completion_tokens += look.completion_tokens


def _filled(answer: PartAnswer, image: Image.Image) -> PartAnswer:
    """A part that is not visible gets the box of the body prior, if that knows the part; others are unchanged."""
    box = prior_box(answer.part, image.width, image.height)
    if answer.status != LabelStatus.ABSENT or box is None:
        return answer
    filled = {"status": LabelStatus.OK, "box": tuple(box), "score": 0.0, "flags": (*answer.flags, FILLED)}
    return answer.model_copy(update=filled)


def _related(answers: Sequence[PartAnswer]) -> tuple[PartAnswer, ...]:
    """The answers of one image, with the flags between boxes added."""
    flags = relation_flags({row.part: Box(*row.box) for row in answers if row.box})
    return tuple(row.model_copy(update={"flags": row.flags + flags.get(row.part, ())}) for row in answers)
