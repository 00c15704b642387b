"""Fixed body proportions, the same for every image: no model, no weights, score 0, flag `prior`.

Good for trying the pipeline, as a baseline that a real engine must beat, and to fill gaps. The proportions are medians
over 630 hand-labelled crops of Clothing Co-Parsing (Yang, Luo, Lin, CVPR 2014) of the part's box relative to the crop;
on those crops they reach a mean IoU of 0.51 (head), 0.68 (upper body) and 0.68 (legs).
"""

from collections.abc import Sequence

from PIL import Image

from labeler.engines.base import EngineAnswer, EngineIdentity, PartOutcome
from labeler.retry import Attempt
from shared.geometry import Box, scaled
from shared.schemas import LabelStatus

PROPORTIONS: dict[str, Box] = {  # fractions of the crop's width and height
    "head": Box(0.364, 0.036, 0.709, 0.210),
    "upper_body": Box(0.161, 0.175, 0.869, 0.500),
    "legs": Box(0.195, 0.446, 0.788, 0.972),
}


class BodyPrior:
    """The engine `body_prior`; a part without a known proportion is absent."""

    identity = EngineIdentity(engine="body_prior", model="ccp-medians", prompt_version="none")

    async def ground(self, image: Image.Image, parts: Sequence[str], attempt: Attempt) -> EngineAnswer:
        return EngineAnswer({part: _outcome(part, image) for part in parts}, space="fractions")

    async def check(self) -> None:
        """Always ready."""

    async def close(self) -> None:
        """Nothing to close."""


def _outcome(part: str, image: Image.Image) -> PartOutcome:
    box = PROPORTIONS.get(part)
    if box is None:
        return PartOutcome(LabelStatus.ABSENT, flags=("prior",))
    return PartOutcome(
        LabelStatus.OK,
        raw_box=tuple(box),
        image_box=scaled(box, image.width, image.height),
        score=0.0,
        flags=("prior",),
    )
