"""An engine with limits, readiness and counters: what the HTTP routes and the in-process client both call."""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Self

from labeler.engines import build_engine
from labeler.grounding.answers import ImageAnswer, ServiceInfo
from labeler.grounding.decoding import PixelBudget
from labeler.grounding.engine import Engine, EngineAwayError, EngineError, EngineSlowError, EngineUnfitError
from labeler.grounding.ground import failed_answer, ground_image
from labeler.grounding.vocabulary import load_vocabulary
from labeler.service.arrivals import Arrivals, BusyError
from labeler.service.metrics import Metrics
from labeler.service.readiness import calibration_image, calibration_iou
from labeler.settings import Settings
from shared.images import image_id_of
from shared.schemas import PARTS, LabelStatus

BODIES = 6  # of the largest size may be in memory at the same time
READY_FOR_S = 2.0  # that long the engine is not asked again whether it is ready ...
UNFIT_FOR_S = 30.0  # ... where its boxes are wrong, that long
READY_WAITERS = 16  # requests that wait for the engine's readiness; more are answered at once


class GroundingService:
    """Grounds batches of images within the limits of the settings. Safe to use from many tasks of one event loop.

    Args:
        engine: by default the one that the settings name; closed by `aclose`.

    Raises ConfigError when the settings do not fit the engine.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self.settings, self.engine = settings, engine or build_engine(settings)
        self.vocabulary = load_vocabulary(settings.parts_file)
        self.metrics = Metrics(self.engine)
        self._requests = 0
        self.arrivals = Arrivals(BODIES * settings.max_body_bytes)
        self._images = asyncio.Semaphore(settings.max_images_in_work)
        self._pixels = PixelBudget(settings.max_pixels_in_work)
        self._calibration: float | None = None  # mean IoU on the calibration image, once it was answered
        self._calibrating = asyncio.Lock()
        self._recent: float | EngineError | None = None  # what `readiness` returned or raised ...
        self._recent_until = 0.0  # ... good until this time of the event loop's clock
        self._looking = asyncio.Lock()
        self._waiters = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.engine.close()

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

    def refuse_when_full(self) -> None:
        """Raises BusyError when all places for requests are taken."""
        if self._requests >= self.settings.max_requests:
            raise BusyError(f"{self._requests} requests are in flight", fix="retry after the seconds in Retry-After")

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold one of the places for requests, from when the body is there: bodies that arrive slowly hold none.

        Raises BusyError when all are taken.
        """
        self.refuse_when_full()
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def ground(
        self,
        contents: Sequence[bytes],
        parts: Sequence[str],
        answered: Callable[[int, ImageAnswer], None] | None = None,
    ) -> list[ImageAnswer]:
        """One answer per image file, in order; a failed image has its status in its own answer.

        Args:
            answered: called with index and answer of an image as soon as the engine gave it, while others are in work.

        Raises EngineDownError or EngineSlowError when the engine answered none of the images it was asked about,
        EngineUnfitError when all its answers would be wrong.
        """
        deadline = asyncio.get_running_loop().time() + self.settings.request_timeout_s

        async def one(index: int, content: bytes) -> ImageAnswer | EngineAwayError:
            result = await self._one(content, parts, deadline)
            if isinstance(result, ImageAnswer):
                self.metrics.count(result)
                if answered:
                    answered(index, result)
            return result

        tasks = [asyncio.ensure_future(one(index, content)) for index, content in enumerate(contents)]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # of one that failed, the others would go on
                task.cancel()
        answers = []
        for content, result in zip(contents, results, strict=True):
            if isinstance(result, EngineAwayError):
                what, image_id = result.what, image_id_of(content)
                failed = failed_answer(image_id, parts, LabelStatus.ENGINE_ERROR, what, retryable=True)
                self.metrics.count(failed)
                answers.append(failed)
            else:
                answers.append(result)
        away = [result for result in results if isinstance(result, EngineAwayError)]
        asked = [result for result in results if not _unreadable(result)]
        if away and len(away) == len(asked):
            raise away[0]
        return answers

    async def readiness(self) -> float:
        """Mean IoU in 0..1 on the calibration image, which is asked about once; the engine is checked every time.

        Raises EngineError while the engine cannot be asked, EngineUnfitError when its boxes are wrong: their IoU is
        under the limit in the settings, or there is none.
        """
        await self.engine.check()
        async with self._calibrating:
            if self._calibration is None:
                (answer,) = await self.ground([calibration_image()], PARTS)
                self._calibration = calibration_iou(answer, self.settings.min_calibration_iou)
            return self._calibration

    async def recent_readiness(self) -> float:
        """`readiness` of the last READY_FOR_S seconds: however often one asks, the engine is asked no more often.

        Raises BusyError when too many wait for it, else as `readiness` does.
        """
        if self._waiters >= READY_WAITERS:
            raise BusyError("the engine is being asked whether it is ready", fix="ask again later")
        self._waiters += 1
        try:
            async with self._looking:
                now = asyncio.get_running_loop().time
                if self._recent is None or now() >= self._recent_until:
                    try:
                        self._recent = await self.readiness()
                    except EngineError as err:
                        self._recent = err
                    unfit = isinstance(self._recent, EngineUnfitError)
                    self._recent_until = now() + (UNFIT_FOR_S if unfit else READY_FOR_S)
                if isinstance(self._recent, EngineError):
                    raise self._recent.with_traceback(None)
                return self._recent
        finally:
            self._waiters -= 1

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
                        max_side=self.settings.max_side,
                        budget=self._pixels,
                    )
        except TimeoutError:
            limit = f"not answered within {self.settings.request_timeout_s:g} s"
            return EngineSlowError(limit, fix="send fewer images per request, or set LABELER_REQUEST_TIMEOUT_S")
        except EngineAwayError as err:
            return err

    def _looks_twice(self, part: str) -> bool:
        return self.settings.second_look and not self.vocabulary.is_sided(part)


def limit_image_threads() -> None:
    """Give the running event loop one worker thread per core, for decoding, resizing and encoding images.

    With more, all images of a batch would be ready at the same late moment and the model would be idle until then;
    with as many as there are cores the first image is asked about before the last one is begun. For the owner of the
    event loop to call: it replaces the loop's default executor.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(cores, thread_name_prefix="images"))


def _unreadable(result: ImageAnswer | EngineAwayError) -> bool:
    return isinstance(result, ImageAnswer) and set(result.statuses.values()) == {LabelStatus.UNREADABLE}
