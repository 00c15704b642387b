import random

import pytest

from shared.progress import SAMPLES, Pace, Progress


def test_the_closing_line_counts_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("label d", 10) as progress:
        progress.advance(7)
        progress.advance(2, failure="refused")
        progress.advance(failure="truncated", note="loss 1.5")
    line = capsys.readouterr().err.strip()
    assert line.startswith("label d: 10/10 images")
    assert "refused 2" in line
    assert "truncated 1" in line
    assert line.endswith("loss 1.5")


def test_an_unknown_total_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("scan", None, "files") as progress:
        progress.advance()
        assert "left" not in progress.line()
    assert "scan: 1 files" in capsys.readouterr().err


def estimate(moments: list[float], batch: int, at: float, total: int) -> float:
    """Seconds left, as said at time `at` of a job that finishes `batch` items at each of the moments."""
    pace, done = Pace(), 0
    for moment in moments:
        if moment <= at:
            done += batch
            pace.note(moment, done)
    return (total - done) / pace.per_s(at)


@pytest.mark.parametrize(("start_s", "every_s"), [(0.0, 0.02), (120.0, 0.3), (600.0, 2.5)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_time_left_is_right_within_a_tenth_also_after_a_long_start(start_s, every_s, share) -> None:
    rng = random.Random(0)
    moments = [start_s + every_s * number + rng.uniform(-0.4, 0.4) * every_s for number in range(2000)]
    at = moments[int(2000 * share)]
    assert estimate(moments, 16, at, 32_000) == pytest.approx(moments[-1] - at, rel=0.1)


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_the_time_left_follows_a_change_of_pace(factor: float) -> None:
    moments = [0.5 * number for number in range(1000)]
    moments += [500 + 0.5 * factor * number for number in range(3000)]
    at = 500 + (moments[-1] - 500) * 0.6
    assert estimate(moments, 16, at, 64_000) == pytest.approx(moments[-1] - at, rel=0.1)


def test_the_time_left_of_a_long_fast_job_is_no_matter_of_its_last_minute() -> None:
    dice, now, moments = random.Random(0), 0.0, []
    while now < 6 * 3600:  # items come all the time, at half the rate every other two minutes
        now += dice.expovariate(20) * (2 if now // 120 % 2 else 1)
        moments.append(now)
    for share in (0.25, 0.5, 0.75):
        at = share * now
        assert estimate(moments, 1, at, len(moments)) == pytest.approx(now - at, rel=0.1)
    pace = Pace()
    for number, moment in enumerate(moments):
        pace.note(moment, number)
    assert len(pace._samples) < 3 * SAMPLES


def test_a_standstill_is_no_pace() -> None:
    pace = Pace()
    assert pace.per_s(0.0) is None
    for second in range(100):
        pace.note(float(second), second)
    assert pace.per_s(99.0) == pytest.approx(1.0) and pace.per_s(10_000.0) < 0.01
