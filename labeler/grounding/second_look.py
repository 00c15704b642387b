"""The second look: the mirrored image is asked about, too, and the agreement of the two answers is a label column.

A model that localises finds the same part in the mirrored image; one that guesses a likely box does not.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image, ImageOps

from labeler.grounding.answers import PartAnswer
from labeler.grounding.box_checks import check_box
from labeler.grounding.engine import Engine, EngineError, EngineUnfitError, PartOutcome
from labeler.grounding.retry import Attempt
from shared.geometry import Box, iou, mirrored
from shared.schemas import FINAL_STATUSES, LabelStatus

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SecondLook:
    """Agreement in 0..1 of the parts whose answers can be compared, and the tokens used."""

    agreement: Mapping[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0


async def look_again(engine: Engine, image: Image.Image, first: Mapping[str, PartAnswer]) -> SecondLook:
    """Ask once about the mirrored image, for the parts of `first` that have a final answer.

    If that fails there is no agreement and the first answer stays. Raises EngineUnfitError.
    """
    parts = [part for part, answer in first.items() if answer.status in FINAL_STATUSES]
    if not parts:
        return SecondLook()
    try:
        second = await engine.ground(ImageOps.mirror(image), parts, Attempt())
    except EngineUnfitError:
        raise
    except EngineError as err:
        log.warning("no second look: %s", err.what)
        return SecondLook()
    compared = {part: agreement(first[part], second.parts[part], image.width, image.height) for part in parts}
    return SecondLook(
        {part: value for part, value in compared.items() if value is not None},
        second.prompt_tokens,
        second.completion_tokens,
    )


def agreement(first: PartAnswer, second: PartOutcome, width: int, height: int) -> float | None:
    """IoU in 0..1 of the first box and the one in the mirrored image of width x height pixels, mapped back.

    0 when only one of them has a box and the other says that the part is not visible; None when both say so, or the
    second answer is unusable.
    """
    box = check_box(second.image_box, width, height).box if second.image_box is not None else None
    if box is None and (second.status != LabelStatus.ABSENT or first.box is None):
        return None
    if box is None or first.box is None:
        return 0.0
    return min(1.0, iou(Box(*first.box), mirrored(box, width)))
