"""Reading what a labelling service answered: a response of lines, a whole one, an error.

The service may not be ours: what is believed is about the images that were sent, and about exactly the parts asked for.
"""

from collections.abc import Callable, Sequence
from functools import partial

import httpx
from pydantic import ValidationError

from labeler.grounding.answers import ImageAnswer
from labeler.grounding.ground import failed_answer
from labeler.service.api_models import Answerer, GroundResponse, ImageLine, Problem, ProblemLine
from shared.images import image_id_of
from shared.schemas import LabelStatus

GiveAnswer = Callable[[int, ImageAnswer], None]  # an image's index among those that were asked about, its answer
DemandSame = Callable[[Answerer], None]  # raises ServiceUnfitError for another engine, model or prompt than before

SHOWN = 300  # characters of a response in an error
# Bytes of a response: of any, more for each image, and for each of its parts, whose raw text alone may take 12,000.
MOST, MOST_PER_IMAGE, MOST_PER_PART = 64 * 1024, 4 * 1024, 16 * 1024


class Lines:
    """Reads a response of lines: who answers, then answers in any order.

    Args:
        demand_same: raises ServiceUnfitError for a line that names another engine, model or prompt.
        answered: called with each answer that is about an image that was sent and not answered before.
    """

    def __init__(
        self,
        images: Sequence[bytes],
        parts: Sequence[str],
        demand_same: DemandSame,
        answered: GiveAnswer,
    ) -> None:
        self._images, self._parts, self._demand_same, self._answered = images, parts, demand_same, answered
        self._known = self._damaged = False
        self._answers: dict[int, ImageAnswer] = {}
        self.problem: httpx.Response | None = None  # which the service ended with

    def read(self, line: bytes) -> None:
        """Nothing is believed before the first line, nor after one that is damaged."""
        if self._damaged or self.problem:
            return
        try:
            if not self._known:
                self._demand_same(Answerer.model_validate_json(line))
                self._known = True
            elif line.startswith(b'{"index"'):
                told = ImageLine.model_validate_json(line)
                index = told.index
                if index in self._answers or not is_about(self._images[index], self._parts, told.image):
                    self._damaged = True
                    return
                self._answers[index] = told.image
                self._answered(index, told.image)
            else:
                problem = ProblemLine.model_validate_json(line)
                self.problem = httpx.Response(
                    problem.status,
                    headers={"Retry-After": problem.retry_after or ""},
                    content=problem.model_dump_json(include=set(Problem.model_fields)),
                )
        except (ValidationError, IndexError):
            self._damaged = True

    def or_failed(self, what: str, *, retryable: bool) -> list[ImageAnswer]:
        """The answers, and failed ones about the other images."""
        failure = partial(failed, parts=self._parts, what=what, retryable=retryable)
        return [self._answers.get(index) or failure(image) for index, image in enumerate(self._images)]


def whole_answers(
    response: httpx.Response, images: Sequence[bytes], parts: Sequence[str], demand_same: DemandSame
) -> list[ImageAnswer] | None:
    """The answers, if there is exactly one for each image that was sent, about exactly the parts asked for.

    Raises ServiceUnfitError when they come from another engine, model or prompt than `info` said.
    """
    try:
        told = GroundResponse.model_validate_json(response.content)
    except ValidationError:
        return None
    demand_same(told)
    if len(told.images) != len(images):
        return None
    fits = all(is_about(image, parts, answer) for image, answer in zip(images, told.images, strict=True))
    return list(told.images) if fits else None


def all_failed(images: Sequence[bytes], parts: Sequence[str], what: str, *, retryable: bool) -> list[ImageAnswer]:
    return [failed(image, parts, what, retryable) for image in images]


def failed(image: bytes, parts: Sequence[str], what: str, retryable: bool) -> ImageAnswer:
    return failed_answer(image_id_of(image), parts, LabelStatus.ENGINE_ERROR, what, retryable=retryable)


def is_about(image: bytes, parts: Sequence[str], answer: ImageAnswer) -> bool:
    """Whether an answer is about this image and exactly these parts."""
    return answer.image_id == image_id_of(image) and sorted(part.part for part in answer.parts) == sorted(set(parts))


def shown(response: httpx.Response) -> str:
    """The start of a response; never decoded as its header says, which may name anything."""
    return response.content[: SHOWN * 4].decode(errors="replace")[:SHOWN]


def problem_of(response: httpx.Response) -> str:
    """The error in a response of our service; empty for any other response, e.g. a proxy's."""
    try:
        return Problem.model_validate_json(response.content).error[:SHOWN]
    except ValidationError:
        return ""
