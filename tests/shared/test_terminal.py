import pytest

from shared.terminal import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("größer, 日本, e\u0301, 👩\u200d🔬", "größer, 日本, e\u0301, 👩\u200d🔬"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\x9b31m", r"\x9b31m"),  # the one-byte form of the same escape
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\udcff.jpg", r"\udcff.jpg"),  # an undecodable file name
        ("[bold]", "[bold]"),
    ],
)
def test_nothing_steers_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode("utf-8")


def test_newlines_of_our_own_stay() -> None:
    assert printable("error\n  fix: \x1b", keep="\n") == "error\n  fix: \\x1b"
