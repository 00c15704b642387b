"""Whether a server saw the image that was sent to it, by the number of tokens it counted for it.

A server that resizes by limits of its own moves every box and does not say so; but an image token stands for a fixed
square of pixels, so the count gives it away. What the text around the image takes depends on the model's chat template,
so it is measured: two plain images of different sizes are sent with the same text. If images are counted as expected,
both leave the same remainder, and that is the text.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from labeler.grounding.coordinates import ModelFamily, image_tokens, sent_size
from labeler.grounding.engine import EngineUnfitError

log = logging.getLogger(__name__)

PROBES = ((64, 128), (400, 800))  # width, height in pixels before enlarging: a small crop and a large one
FIX = (
    "start it with the processor's own pixel limits, e.g. `make vllm` (no min_pixels, max_pixels), "
    "and check that LABELER_FAMILY is the model's family"
)

Probe = Callable[[str, int, int], Awaitable[int | None]]


class TokenCheck:
    """Checks the prompt tokens of every answer; one per engine. Safe to use from many tasks of one event loop.

    Args:
        family: of the served model.
        probe: asks a text about a plain image of a width and a height (pixels); the prompt tokens that the server
            counted, None when it does not say.
    """

    def __init__(self, family: ModelFamily, probe: Probe) -> None:
        self._family, self._probe = family, probe
        self._text_tokens: dict[str, int | None] = {}  # by text; None: the server does not count
        self._measuring = asyncio.Lock()

    async def of_text(self, text: str) -> int | None:
        """Tokens of a prompt without those of its image, measured once per text; None when the server does not say.

        Raises EngineUnfitError when images are not counted as expected, EngineError as the probe does.
        """
        if text not in self._text_tokens:
            async with self._measuring:
                if text not in self._text_tokens:
                    self._text_tokens[text] = await self._measure(text)
        return self._text_tokens[text]

    def verify(self, text: str, text_tokens: int | None, width: int, height: int, counted: int | None) -> None:
        """Compare `counted` prompt tokens with the image of `width` x `height` pixels that was sent with `text`.

        Raises EngineUnfitError, with both numbers, when the server saw another image.
        """
        if text_tokens is None or counted is None:
            return
        expected = image_tokens(width, height, self._family)
        if counted - text_tokens != expected:
            self._text_tokens.pop(text, None)  # the server may be mended while this service lives on
            _refuse(f"for an image of {width} x {height} pixels", counted - text_tokens, expected)

    async def _measure(self, text: str) -> int | None:
        sizes = [sent_size(*probe, self._family) for probe in PROBES]
        small, large = [await self._probe(text, *size) for size in sizes]
        if small is None or large is None:
            if not self._text_tokens:  # said once, not for every text
                log.warning("the server reports no prompt tokens, so nobody checks whether it resizes the images")
            return None
        expected_small, expected_large = (image_tokens(*size, self._family) for size in sizes)
        if large - small != expected_large - expected_small:
            (width, height), (larger_width, larger_height) = sizes
            _refuse(
                f"more for {larger_width} x {larger_height} than for {width} x {height} pixels",
                large - small,
                expected_large - expected_small,
            )
        return small - expected_small


def _refuse(where: str, counted: int, expected: int) -> NoReturn:
    raise EngineUnfitError(
        f"the server counted {counted} image tokens {where} where {expected} were sent: it resizes the images, "
        "and every box would lie in the wrong place",
        fix=FIX,
    )
