"""Decoding within limits of pixels and sides."""

import asyncio
import io

import pytest
from PIL import Image

from labeler.grounding import decoding
from labeler.grounding.decoding import ImageLimits, PixelBudget, decoded
from shared.images import UnreadableImageError


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(8193, 1), (1, 8193), (3001, 4000)])
async def test_sides_and_pixels_are_limited(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImageError, match=r"side over 8192|over 12000000 pixels"):
        async with decoded(png(*size), ImageLimits(12_000_000)):
            pass


@pytest.mark.parametrize("size", [(64, 128), (300, 300), (1200, 1000)])
async def test_small_and_large_images_are_the_same_image(size: tuple[int, int]) -> None:
    async with decoded(png(*size), ImageLimits(12_000_000, budget=PixelBudget(10))) as image:
        assert image.size == size and image.mode == "RGB"


async def test_large_images_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "CROP_PIXELS", 0)
    monkeypatch.setattr(decoding, "SMALL_PIXELS", 0)
    limits = ImageLimits(12_000_000, budget=PixelBudget(2 * 64 * 128))
    inside = most = 0

    async def one() -> None:
        nonlocal inside, most
        async with decoded(png(64, 128), limits):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1

    await asyncio.gather(*(one() for _ in range(10)))
    assert most == 2


async def test_who_gives_up_waiting_blocks_nobody() -> None:
    budget = PixelBudget(10)

    async def hold(count: int) -> None:
        async with budget.held(count):
            pass

    async with budget.held(6):
        large, small = asyncio.create_task(hold(10)), asyncio.create_task(hold(4))
        await asyncio.sleep(0)
        assert not small.done(), "in turn"
        large.cancel()
        await asyncio.wait_for(small, 20)
    await asyncio.wait_for(hold(10), 20)
    async with budget.held(10):
        waiting = asyncio.create_task(hold(10))
        await asyncio.sleep(0)
    waiting.cancel()  # in the moment in which its turn came
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.wait_for(hold(10), 20)
