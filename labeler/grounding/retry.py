"""When to ask again, as pure functions: no sleep, no client, no clock.

Two separate questions. Transport: nobody answered, so the same request is repeated after a pause. Semantic: an answer
came but could not be used, so the question is asked differently: warmer, and at last without the JSON schema.
"""

from collections.abc import Collection
from dataclasses import dataclass

import httpx

from shared.schemas import LabelStatus

RETRYABLE_CODES = frozenset({408, 429, 500, 502, 503, 504})
UNFIT_CODE = 424  # "failed dependency": the engine answers wrongly and would again, so a run stops
ASK_AGAIN = frozenset({LabelStatus.REFUSED, LabelStatus.TRUNCATED, LabelStatus.UNPARSEABLE, LabelStatus.INVALID_BOX})
TEMPERATURES = (0.0, 0.3, 0.6, 0.9)  # the first answer is the most likely one; later ones must be able to differ


@dataclass(frozen=True)
class Attempt:
    """How the question is asked this time.

    Args:
        number: 1-based.
        temperature: of the sampling, 0 = the most likely answer.
        with_schema: whether the server forces the answer into the JSON schema.
    """

    number: int = 1
    temperature: float = TEMPERATURES[0]
    with_schema: bool = True


def next_attempt(previous: Attempt, statuses: Collection[LabelStatus], limit: int) -> Attempt | None:
    """The next way to ask for the parts with these statuses; None when there is nothing to ask or no attempt left.

    The schema is dropped for the last attempt, and after a truncated answer: guided decoding that fills the answer
    with white space or digits until the token limit does so again at any temperature.
    """
    if previous.number >= limit or not ASK_AGAIN.intersection(statuses):
        return None
    number = previous.number + 1
    with_schema = previous.with_schema and number < limit and LabelStatus.TRUNCATED not in statuses
    return Attempt(number, TEMPERATURES[min(number, len(TEMPERATURES)) - 1], with_schema)


def transport_retryable(outcome: int | Exception) -> bool:
    """Whether a status code or an exception of httpx may go away by itself."""
    if isinstance(outcome, int):
        return outcome in RETRYABLE_CODES
    return isinstance(outcome, httpx.TimeoutException | httpx.NetworkError | httpx.RemoteProtocolError)


def pause_s(failures: int, chance: float, *, base_s: float, longest_s: float, asked_s: float | None = None) -> float:
    """Seconds to wait after the given number of failures in a row (>= 1).

    Doubles from `base_s` up to `longest_s`; the upper half of it is scaled by `chance` in 0..1, so that many clients
    do not return together. `asked_s`, a server's Retry-After, is the least waited, up to `longest_s`.
    """
    full = min(longest_s, base_s * 2.0 ** min(failures - 1, 30))
    return max(full * (0.5 + 0.5 * chance), min(asked_s or 0.0, longest_s))


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds asked for by a Retry-After header; None when absent or a date."""
    value = headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else None
