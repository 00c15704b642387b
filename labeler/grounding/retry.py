"""Retry policies as pure functions: no sleep, no client, no clock.

Transport retries: no response, so the same request is repeated after a pause. Semantic retries: the answer is unusable,
so the question is asked again at a higher temperature, and finally without the JSON schema.
"""

from collections.abc import Collection
from dataclasses import dataclass

import httpx

from shared.schemas import LabelStatus

RETRYABLE_CODES = frozenset({408, 429, 500, 502, 503, 504})
UNFIT_CODE = 424  # "failed dependency": all answers of the engine would be wrong, so a run stops
ASK_AGAIN = frozenset({LabelStatus.REFUSED, LabelStatus.TRUNCATED, LabelStatus.UNPARSEABLE, LabelStatus.INVALID_BOX})
TEMPERATURES = (0.0, 0.3, 0.6, 0.9)  # greedy at first; later attempts must be able to differ


@dataclass(frozen=True)
class Attempt:
    """How a question is asked.

    Args:
        number: 1-based.
        temperature: of the sampling; 0 is greedy.
        with_schema: whether guided decoding enforces the JSON schema.
    """

    number: int = 1
    temperature: float = TEMPERATURES[0]
    with_schema: bool = True


def next_attempt(previous: Attempt, statuses: Collection[LabelStatus], limit: int) -> Attempt | None:
    """The next attempt for parts with these statuses; None when none can be retried or no attempt is left.

    The schema is dropped for the last attempt, and after a truncated answer: guided decoding that emits white space or
    digits until the token limit does so again at any temperature.
    """
    if previous.number >= limit or not ASK_AGAIN.intersection(statuses):
        return None
    number = previous.number + 1
    with_schema = previous.with_schema and number < limit and LabelStatus.TRUNCATED not in statuses
    return Attempt(number, TEMPERATURES[min(number, len(TEMPERATURES)) - 1], with_schema)


def transport_retryable(outcome: int | Exception) -> bool:
    """Whether a status code or an exception of httpx is transient."""
    if isinstance(outcome, int):
        return outcome in RETRYABLE_CODES
    return isinstance(outcome, httpx.TimeoutException | httpx.NetworkError | httpx.RemoteProtocolError)


def pause_s(failures: int, chance: float, *, base_s: float, longest_s: float, asked_s: float | None = None) -> float:
    """Seconds to wait after `failures` (>= 1) failures in a row: exponential back-off with jitter.

    Doubles from `base_s` up to `longest_s`; `chance` in 0..1 scales the upper half. `asked_s`, a server's Retry-After,
    is the minimum, up to `longest_s`.
    """
    full = min(longest_s, base_s * 2.0 ** min(failures - 1, 30))
    return max(full * (0.5 + 0.5 * chance), min(asked_s or 0.0, longest_s))


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds in a Retry-After header; None when it is absent or a date."""
    value = headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else None
