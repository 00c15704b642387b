"""Decoding files that nobody vouched for: off the event loop, and never more pixels at once than there is memory for.

What a file costs is its pixels, not its bytes: a WebP of 526 bytes may hold 12 million.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from PIL import Image

from shared.images import UnreadableImageError, decode, opened, to_rgb

SMALL_FILE = 16 * 1024  # bytes, and ...
SMALL_PIXELS = 2**16  # ... pixels of a crop that is decoded in 0.1 ms, less than handing it to a thread takes
CROP_PIXELS = 2**20  # no person crop has more; the number of images in work bounds how many of these there are


class PixelBudget:
    """Pixels of large images in memory; who waits is served in turn. For the tasks of one event loop.

    Args:
        limit: pixels at once. A single image larger than this waits until there is no other.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._free = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def held(self, pixels: int) -> AsyncIterator[None]:
        """Hold that many of them inside the `with` block."""
        count = min(pixels, self._limit)
        await self._take(count)
        try:
            yield
        finally:
            self._give(count)

    async def _take(self, count: int) -> None:
        if not self._waiting and count <= self._free:
            self._free -= count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn came in the same moment
                self._give(count)
            else:
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
                self._give(0)  # who stood behind it may fit
            raise

    def _give(self, count: int) -> None:
        self._free += count
        while self._waiting and self._waiting[0][0] <= self._free:
            wanted, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= wanted
                turn.set_result(None)


@dataclass(frozen=True)
class ImageLimits:
    """What an image may be, read from its header.

    Args:
        max_pixels: width x height.
        max_side: of either side; rows cost memory however short they are.
        budget: for images over CROP_PIXELS; None: no limit.
    """

    max_pixels: int
    max_side: int = 8192
    budget: PixelBudget | None = None


@asynccontextmanager
async def decoded(content: bytes, limits: ImageLimits) -> AsyncIterator[Image.Image]:
    """The RGB image of a file, within its share of the budget.

    Raises UnreadableImageError for what is not an image or over the limits, before any pixel is decoded.
    """
    first: Image.Image | int
    if len(content) <= SMALL_FILE:
        first = _decoded_up_to(SMALL_PIXELS, content, limits)
        if isinstance(first, int) and first <= CROP_PIXELS:
            first = await asyncio.to_thread(_decoded_up_to, CROP_PIXELS, content, limits)
    else:  # also the header: one of millions of entries takes seconds
        first = await asyncio.to_thread(_decoded_up_to, CROP_PIXELS, content, limits)
    if isinstance(first, Image.Image):
        yield first
        return
    budget = limits.budget or PixelBudget(first)
    async with budget.held(first):
        yield await asyncio.to_thread(decode, content, max_pixels=limits.max_pixels)


def _decoded_up_to(pixels: int, content: bytes, limits: ImageLimits) -> Image.Image | int:
    """The decoded image, or the number of its pixels if it has more than `pixels`."""
    with opened(content, max_pixels=limits.max_pixels) as image:
        width, height = image.size
        if max(width, height) > limits.max_side:
            raise UnreadableImageError(f"{width} x {height} has a side over {limits.max_side} pixels")
        return width * height if width * height > pixels else to_rgb(image, content)
