"""What is printed never steers the terminal: file names, answers of models and labels are other people's text."""

import unicodedata

_STEERING = {"Cc", "Cs", "Zl", "Zp"}  # controls (ANSI escapes begin with one), lone surrogates, line separators
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")  # turn the text around


def printable(text: object, *, keep: str = "") -> str:
    """The text with control characters, bidirectional overrides and undecodable bytes written as escapes.

    Args:
        keep: control characters that may stay, e.g. a newline.
    """
    words = str(text)
    if words.isascii() and words.isprintable():
        return words
    return "".join(
        character
        if character in keep or not (character in _BIDI or unicodedata.category(character) in _STEERING)
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in words
    )
