"""Part boxes of single images from Python: `Grounder`, and `AsyncGrounder` for asyncio."""

import asyncio
import io
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self, TypeAlias, overload

import numpy as np
import numpy.typing as npt
from anyio.from_thread import BlockingPortal, start_blocking_portal
from PIL import Image
from pydantic import SecretStr

from labeler.annotation.client import GroundingClient, HttpClient, InProcessClient
from labeler.grounding.answers import ImageAnswer, ServiceInfo
from labeler.grounding.ground import failed_answer
from labeler.service.grounding_service import limit_image_threads
from labeler.settings import load_settings
from shared.errors import UsageError
from shared.images import UnreadableImageError, read_file, to_rgb
from shared.schemas import LabelStatus

ImageInput: TypeAlias = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]

BATCH_IMAGES = 16  # per call of the service
READY_TIMEOUT_S = 300.0  # a model server takes minutes to load a large model


class AsyncGrounder:
    """Finds body parts in images of single persons. An async context manager; safe to use from many tasks.

        async with AsyncGrounder() as grounder:
            answer = await grounder.ground("person.jpg")

    Args:
        url: a running labelling service; by default the engine runs in this process.
        api_key: of that service.
        settings: of the engine in this process; by default from the LABELER_* variables. Any variable of the README in
            lower case without its prefix, e.g. engine="vllm_server", upstream_url="http://host:8000", model="...".

    Raises:
        ConfigError: invalid settings, or a model that cannot be loaded.
        UsageError: settings together with a URL.
        ServiceError: (on entering) the service or its engine is not ready within five minutes.
    """

    def __init__(self, *, url: str | None = None, api_key: str | None = None, **settings: object) -> None:
        if url and settings:
            raise UsageError(
                f"settings for a service that already runs: {', '.join(sorted(settings))}",
                fix="set them where the service is started, or leave out the URL",
            )
        key = SecretStr(api_key) if api_key else None
        self._client: GroundingClient = HttpClient(url, key) if url else InProcessClient(load_settings(**settings))
        self._places = asyncio.Semaphore(self._client.connections)
        self._info: ServiceInfo | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._client.wait_ready(READY_TIMEOUT_S)
            self._info = await self._client.info()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Release the engine or the connections."""
        self._info = None
        await self._client.aclose()

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that can be asked for."""
        return self._open_info().parts

    @overload
    async def ground(  # type: ignore[overload-overlap]  # a str is a sequence of str: one path, not many
        self, images: ImageInput, parts: Sequence[str] | None = None
    ) -> ImageAnswer: ...

    @overload
    async def ground(self, images: Sequence[ImageInput], parts: Sequence[str] | None = None) -> list[ImageAnswer]: ...

    async def ground(
        self, images: ImageInput | Sequence[ImageInput], parts: Sequence[str] | None = None
    ) -> ImageAnswer | list[ImageAnswer]:
        """Boxes of body parts: one answer for one image, a list in the same order for a list of images.

        Args:
            images: a path; the bytes of an image file; a PIL image; or an RGB array [H, W, 3] (grey [H, W]) of uint8.
                The EXIF orientation of files is applied, that of PIL images is not.
            parts: what to look for; by default all of `parts`.

        Returns:
            `boxes` by part in pixels of the image (x_min, y_min, x_max, y_max, maxima exclusive), `statuses` by part,
            and for each part of `parts` also score, flags and the raw answer. A file that cannot be read or decoded has
            status `unreadable` and the reason in `error`; image_id is empty if there were no bytes.

        Raises:
            UsageError: an unknown part, an image of another type, or an array of another shape or dtype.
            ServiceError: the service cannot be used at all.
        """
        known = self._open_info().parts
        asked = tuple(dict.fromkeys(parts)) if parts is not None else known
        if not asked or isinstance(parts, str) or set(asked) - set(known):
            raise UsageError(f"parts={parts!r}", fix=f"give a list of names out of {', '.join(known)}")
        if not isinstance(images, Sequence) or isinstance(images, str | bytes):
            _check(images, "the image")
            return (await self._batch([images], asked))[0]
        for index, image in enumerate(images):
            _check(image, f"image {index}")
        size = min(BATCH_IMAGES, self._open_info().max_images)
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        answered = await asyncio.gather(*(self._batch(batch, asked) for batch in batches))
        return [answer for batch in answered for answer in batch]

    async def _batch(self, images: Sequence[ImageInput], parts: Sequence[str]) -> list[ImageAnswer]:
        async with self._places:
            contents = await asyncio.to_thread(lambda: [_content(image) for image in images])
            readable = [content for content in contents if isinstance(content, bytes)]
            answers = iter(await self._client.ground(readable, parts) if readable else ())
            return [
                next(answers)
                if isinstance(content, bytes)
                else failed_answer("", parts, LabelStatus.UNREADABLE, content.reason)
                for content in contents
            ]

    def _open_info(self) -> ServiceInfo:
        if self._info is None:
            raise UsageError("the grounder is not open", fix="use it inside `with Grounder() as grounder:`")
        return self._info


class Grounder:
    """`AsyncGrounder` for code without asyncio, in a background thread. Safe to use from many threads.

        with Grounder() as grounder:
            answer = grounder.ground("person.jpg")
        print(answer.boxes["head"], answer.statuses)

    Arguments and errors are those of AsyncGrounder.
    """

    def __init__(self, *, url: str | None = None, api_key: str | None = None, **settings: object) -> None:
        self._grounder = AsyncGrounder(url=url, api_key=api_key, **settings)
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            portal.call(limit_image_threads)
            stack.enter_context(portal.wrap_async_context_manager(self._grounder))
            self._stack, self._portal = stack.pop_all(), portal
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the engine or the connections, and end the thread."""
        self._portal = None
        self._stack.close()

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that can be asked for."""
        return self._grounder.parts

    @overload
    def ground(  # type: ignore[overload-overlap]
        self, images: ImageInput, parts: Sequence[str] | None = None
    ) -> ImageAnswer: ...

    @overload
    def ground(self, images: Sequence[ImageInput], parts: Sequence[str] | None = None) -> list[ImageAnswer]: ...

    def ground(
        self, images: ImageInput | Sequence[ImageInput], parts: Sequence[str] | None = None
    ) -> ImageAnswer | list[ImageAnswer]:
        """See AsyncGrounder.ground."""
        if self._portal is None:
            raise UsageError("the grounder is not open", fix="use it inside `with Grounder() as grounder:`")
        return self._portal.call(self._grounder.ground, images, parts)


def _check(image: object, name: str) -> None:
    """Raises UsageError unless the type, shape and dtype are those of an image."""
    if isinstance(image, np.ndarray):
        rgb = image.ndim == 3 and image.shape[2] == 3
        if image.dtype != np.uint8 or not (rgb or image.ndim == 2) or not image.size:
            raise UsageError(
                f"{name} is an array {list(image.shape)} of {image.dtype}",
                fix="give an RGB array [H, W, 3] or a grey one [H, W] of uint8",
            )
    elif not isinstance(image, str | Path | bytes | Image.Image):
        raise UsageError(
            f"{name} is of type {type(image).__name__}",
            fix="give a path, the bytes of an image file, a PIL image or a NumPy array",
        )


def _content(image: ImageInput) -> bytes | UnreadableImageError:
    """The bytes of an image file: as they are on disk, or a PNG of the pixels."""
    if isinstance(image, bytes):
        return image
    try:
        if isinstance(image, str | Path):
            return read_file(Path(image))
        buffer = io.BytesIO()
        pixels = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        to_rgb(pixels, None, upright=False).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    except UnreadableImageError as err:
        return err
    except Exception as err:  # Pillow decodes lazily, and its decoders raise many types on damaged files
        return UnreadableImageError(str(err).splitlines()[0][:200] if str(err) else type(err).__name__)
