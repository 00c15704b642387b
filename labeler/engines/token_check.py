"""Detects servers that resize images, from the number of prompt tokens they report.

A server that resizes by its own limits moves every box without an error. An image token stands for a fixed square of
pixels, so the token count reveals it. The number of text tokens depends on the chat template, so it is measured: two
plain images of different sizes are sent with the same text, and what remains after subtracting the expected image
tokens must be equal.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from labeler.grounding.coordinates import ModelFamily, image_tokens, sent_size
from labeler.grounding.engine import EngineUnfitError

log = logging.getLogger(__name__)

PROBES = ((64, 128), (400, 800))  # width, height in pixels before resizing: a small crop and a large one
FIX = (
    "start it with the processor's own pixel limits, e.g. `make vllm` (no min_pixels, max_pixels), "
    "and check that LABELER_FAMILY is the model's family"
)

Probe = Callable[[str, int, int], Awaitable[int | None]]


class TokenCheck:
    """Checks the prompt tokens of every answer; one per engine. Safe to use from many tasks of one event loop.

    Args:
        family: of the served model.
        probe: sends a text with a plain image of a width and a height (pixels); returns the prompt tokens that the
            server reports, None when it reports none.
    """

    def __init__(self, family: ModelFamily, probe: Probe) -> None:
        self._family, self._probe = family, probe
        self._text_tokens: dict[str, int | None] = {}  # by text; None: the server reports none
        self._measuring = asyncio.Lock()

    async def of_text(self, text: str) -> int | None:
        """Prompt tokens without those of the image, measured once per text; None when the server reports none.

        Raises EngineUnfitError when images are not counted as expected, EngineError as the probe does.
        """
        if text not in self._text_tokens:
            async with self._measuring:
                if text not in self._text_tokens:
                    self._text_tokens[text] = await self._measure(text)
        return self._text_tokens[text]

    def verify(self, text: str, text_tokens: int | None, width: int, height: int, counted: int | None) -> None:
        """Compare the reported prompt tokens with the image of `width` x `height` pixels that was sent with `text`.

        Raises EngineUnfitError, with both numbers, when the server saw another image.
        """
        if text_tokens is None or counted is None:
            return
        expected = image_tokens(width, height, self._family)
        if counted - text_tokens != expected:
            self._text_tokens.pop(text, None)  # measure again: the server may be fixed while this service runs
            _refuse(f"for an image of {width} x {height} pixels", counted - text_tokens, expected)

    async def _measure(self, text: str) -> int | None:
        sizes = [sent_size(*probe, self._family) for probe in PROBES]
        small, large = [await self._probe(text, *size) for size in sizes]
        if small is None or large is None:
            if not self._text_tokens:  # logged once, not for every text
                log.warning("the server reports no prompt tokens, so it cannot be checked whether it resizes images")
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
