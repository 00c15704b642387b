"""The retry policy, without a clock."""

import httpx
import pytest

from labeler.grounding.retry import Attempt, next_attempt, pause_s, retry_after_s, transport_retryable
from shared.schemas import FINAL_STATUSES, LabelStatus


def test_the_ladder_gets_warmer_and_ends_without_schema() -> None:
    attempts, attempt = [], Attempt()
    while attempt:
        attempts.append(attempt)
        attempt = next_attempt(attempt, {LabelStatus.UNPARSEABLE}, limit=4)
    assert [a.number for a in attempts] == [1, 2, 3, 4]
    assert [a.temperature for a in attempts] == sorted({a.temperature for a in attempts})
    assert [a.with_schema for a in attempts] == [True, True, True, False]


def test_a_cut_answer_is_asked_again_without_schema() -> None:
    second = next_attempt(Attempt(), {LabelStatus.TRUNCATED}, limit=4)
    assert second is not None and not second.with_schema
    third = next_attempt(second, {LabelStatus.UNPARSEABLE}, limit=4)
    assert third is not None and not third.with_schema


@pytest.mark.parametrize("status", FINAL_STATUSES)
def test_final_answers_end_it(status: LabelStatus) -> None:
    assert next_attempt(Attempt(), {status}, limit=4) is None


def test_a_limit_of_one_asks_once() -> None:
    assert next_attempt(Attempt(), {LabelStatus.REFUSED}, limit=1) is None


def test_pauses_double_stay_in_their_band_and_respect_the_server() -> None:
    for failures in range(1, 60):
        full = min(30.0, 0.5 * 2 ** (failures - 1))
        assert pause_s(failures, 0.0, base_s=0.5, longest_s=30) == full / 2
        assert pause_s(failures, 1.0, base_s=0.5, longest_s=30) == full
    assert pause_s(1, 0.0, base_s=0.5, longest_s=30, asked_s=7) == 7
    assert pause_s(1, 0.0, base_s=0.5, longest_s=30, asked_s=3600) == 30


def test_what_retryable() -> None:
    assert transport_retryable(503) and transport_retryable(429) and transport_retryable(httpx.ReadError("cut"))
    assert transport_retryable(httpx.RemoteProtocolError("cut")) and transport_retryable(httpx.ReadTimeout("slow"))
    assert not transport_retryable(401) and not transport_retryable(httpx.UnsupportedProtocol("ftp"))


@pytest.mark.parametrize(("value", "seconds"), [("3", 3.0), ("soon", None), ("²", None)])
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_s(httpx.Headers({"retry-after": value.encode()})) == seconds
    assert retry_after_s(httpx.Headers()) is None
