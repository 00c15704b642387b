"""Fixed body proportions, the same for every image: no model, no weights, score 0, flag `prior`.

A baseline that a model must beat, and an engine for trying the pipeline without one.
"""

from collections.abc import Sequence

from PIL import Image

from labeler.grounding.engine import EngineAnswer, EngineIdentity, PartOutcome
from labeler.grounding.retry import Attempt
from shared.body_prior import PROPORTIONS, prior_box
from shared.schemas import LabelStatus


class BodyPrior:
    """The engine `body_prior`; a part that the body prior does not know is absent."""

    identity = EngineIdentity(engine="body_prior", model="ccp-medians", prompt_version="none")

    async def ground(self, image: Image.Image, parts: Sequence[str], attempt: Attempt) -> EngineAnswer:
        return EngineAnswer({part: _outcome(part, image) for part in parts}, space="fractions")

    async def check(self) -> None:
        """Always ready."""

    async def close(self) -> None:
        """Nothing to close."""


def _outcome(part: str, image: Image.Image) -> PartOutcome:
    box = prior_box(part, image.width, image.height)
    if box is None:
        return PartOutcome(LabelStatus.ABSENT, flags=("prior",))
    return PartOutcome(
        LabelStatus.OK,
        raw_box=tuple(PROPORTIONS[part]),
        image_box=box,
        score=0.0,
        flags=("prior",),
    )
