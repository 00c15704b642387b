import pytest

from shared.progress import Progress


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
