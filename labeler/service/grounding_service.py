"""What the routes share: the engine, its limits, its readiness."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from labeler.grounding.answers import GroundResponse, ImageAnswer, ServiceInfo
from labeler.grounding.engine import Engine, EngineAwayError, EngineError, EngineSlowError
from labeler.grounding.ground import FILLED, failed_answer, ground_image
from labeler.grounding.vocabulary import load_vocabulary
from labeler.service.calibration_image import calibration_image, mean_iou
from labeler.service.metrics import Metrics
from labeler.settings import Settings
from shared.errors import DgreidError
from shared.geometry import Box
from shared.images import image_id_of
from shared.schemas import PARTS, LabelStatus


class BusyError(DgreidError):
    """As many requests as allowed are in flight."""


class GroundingService:
    """Grounds batches within limits; one per application."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings, self.engine = settings, engine
        self.vocabulary = load_vocabulary(settings.parts_file)
        self.metrics = Metrics(engine)
        self._requests = 0
        self._images = asyncio.Semaphore(settings.max_images_in_work)
        self._calibration: float | None = None  # mean IoU on the calibration image, once it was answered
        self._calibrating = asyncio.Lock()

    def info(self) -> ServiceInfo:
        identity = self.engine.identity
        return ServiceInfo(
            engine=identity.engine,
            model=identity.model,
            prompt_version=identity.prompt_version,
            parts=self.vocabulary.parts,
            missing_parts=self.settings.missing_parts,
            second_look=self.settings.second_look,
            max_images=self.settings.max_images,
            max_body_bytes=self.settings.max_body_bytes,
            max_requests=self.settings.max_requests,
        )

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place for one request, from before its body is read. Raises BusyError when there is none."""
        if self._requests >= self.settings.max_requests:
            raise BusyError(f"{self._requests} requests are in flight", fix="come back after Retry-After seconds")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def ground(self, contents: Sequence[bytes], parts: Sequence[str]) -> GroundResponse:
        """One answer per image, in their order; an image that failed says so in its own answer.

        Raises EngineDownError or EngineSlowError when the engine answered for none of the images it was asked about.
        """
        deadline = asyncio.get_running_loop().time() + self.settings.request_timeout_s
        results = await asyncio.gather(*(self._one(content, parts, deadline) for content in contents))
        answers = [
            failed_answer(image_id_of(content), parts, LabelStatus.ENGINE_ERROR, result.what, may_pass=True)
            if isinstance(result, EngineAwayError)
            else result
            for content, result in zip(contents, results, strict=True)
        ]
        for answer in answers:
            self.metrics.count(answer)
        away = [result for result in results if isinstance(result, EngineAwayError)]
        asked = [result for result in results if not _unreadable(result)]
        if away and len(away) == len(asked):
            raise away[0]
        identity = self.engine.identity
        return GroundResponse(
            engine=identity.engine,
            model=identity.model,
            prompt_version=identity.prompt_version,
            images=tuple(answers),
        )

    async def readiness(self) -> float:
        """Mean IoU of the engine's answer to the calibration image, asked for once; the engine's own check every time.

        Raises EngineError while the engine cannot be asked, or did not answer with a single finite box.
        """
        await self.engine.check()
        async with self._calibrating:
            if self._calibration is None:
                self._calibration = await self._calibrate()
            return self._calibration

    async def _one(self, content: bytes, parts: Sequence[str], deadline: float) -> ImageAnswer | EngineAwayError:
        try:
            async with asyncio.timeout_at(deadline), self._images:
                with self.metrics.images_in_work.track_inprogress(), self.metrics.image_seconds.time():
                    return await ground_image(
                        self.engine,
                        content,
                        parts,
                        max_pixels=self.settings.max_pixels,
                        max_attempts=self.settings.max_attempts,
                        missing_parts=self.settings.missing_parts,
                        second_look=[part for part in parts if self._looks_twice(part)],
                    )
        except TimeoutError:
            limit = f"not answered within {self.settings.request_timeout_s:g} s"
            return EngineSlowError(limit, fix="send fewer images per request, or set LABELER_REQUEST_TIMEOUT_S")
        except EngineAwayError as err:
            return err

    def _looks_twice(self, part: str) -> bool:
        return self.settings.second_look and not self.vocabulary.is_sided(part)

    async def _calibrate(self) -> float:
        response = await self.ground([calibration_image()], PARTS)
        answer = response.images[0]
        boxes = {row.part: Box(*row.box) for row in answer.parts if row.box and FILLED not in row.flags}
        if not boxes:
            kinds = ", ".join(f"{row.part}: {row.status}" for row in answer.parts)
            raise EngineError(
                f"the calibration image was not answered with a box ({answer.error or kinds})",
                fix="check that LABELER_MODEL is a model that can ground, and LABELER_FAMILY its family",
            )
        return mean_iou(boxes)


def _unreadable(result: ImageAnswer | EngineAwayError) -> bool:
    return isinstance(result, ImageAnswer) and all(row.status == LabelStatus.UNREADABLE for row in result.parts)
