"""Values that models write: JSON, Python literals, JSON5. Each is read by its language's parser; nothing is repaired.

An object becomes `Pairs`, so that repeated keys stay visible; lists and tuples become lists.
"""

import ast
import json
import re
from typing import Any

import json5

MAX_DEPTH = 40  # brackets inside one another; a box answer has under 8
JSON5_LIMIT = 2_000  # characters; its parser needs a millisecond for ten
_BRACKET = re.compile(r"[\[\]{}]")
_ANY_BRACKET = re.compile(r"[\[\]{}()]")
_COMMENT = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|(#[^\n]*|//[^\n]*|/\*.*?(?:\*/|\Z))", re.DOTALL)
_OPENED_BY = {"]": "[", "}": "{"}
_WIDE = str.maketrans("：，、；［］｛｝（）", ":,,;[]{}()")
_QUOTES = str.maketrans(dict.fromkeys("“”„‟«»＂「」『』`", '"') | dict.fromkeys("‘’‚‛＇", "'"))
_NO_VALUE = {"null": None, "none": None, "true": True, "false": False}


class Pairs(tuple[tuple[str, Any], ...]):
    """The members of an object in their order, repeated keys included."""

    __slots__ = ()


class NoValueError(ValueError):
    """The text is no value of any of these languages."""


_DECODER = json.JSONDecoder(object_pairs_hook=Pairs)


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises NoValueError, also where it is nested deeper than MAX_DEPTH."""
    _limit_depth(text)
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as err:
        raise NoValueError from err


def read_loose(text: str) -> Any:
    """The value of a text in JSON, as a Python literal or in JSON5, also with typographic quotes. Raises NoValueError.

    Names that stand without quotes are strings, except null, None, true and false.
    """
    for spelling in dict.fromkeys((text, text.translate(_QUOTES))):
        for read in (read_json, _read_python, _read_json5):
            try:
                return read(spelling)
            except NoValueError:
                continue
    raise NoValueError


def comments(text: str) -> list[str]:
    """The comments in a value that is no JSON, of Python or JSON5."""
    if "#" not in text and "//" not in text and "/*" not in text:
        return []
    return [one.strip("#/* \t\r\n") for one in _COMMENT.findall(text) if one]


def ascii_brackets(text: str) -> str:
    """The text with full-width brackets, colons and commas as ASCII, of the same length."""
    return text if text.isascii() else text.translate(_WIDE)


def blocks(text: str) -> list[tuple[int, int]]:
    """(start, end) of the outermost pairs of brackets; empty for text nested deeper than MAX_DEPTH."""
    opened: list[tuple[int, str]] = []
    found: list[tuple[int, int]] = []
    for match in _BRACKET.finditer(text):
        if match[0] in "[{":
            opened.append((match.start(), match[0]))
            if len(opened) > MAX_DEPTH:
                return []
        elif opened and opened[-1][1] == _OPENED_BY[match[0]]:
            start, _ = opened.pop()
            while found and found[-1][0] > start:
                found.pop()
            found.append((start, match.end()))
    return found


def _limit_depth(text: str) -> None:
    """Raises NoValueError where brackets are nested deeper than MAX_DEPTH, those in strings included."""
    if text.count("[") + text.count("{") + text.count("(") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _ANY_BRACKET.findall(text):
        depth += 1 if bracket in "[{(" else -1
        if depth > MAX_DEPTH:
            raise NoValueError


def _read_python(text: str) -> Any:
    _limit_depth(text)
    if "\\" in text:  # an unknown escape would be a warning on stderr
        raise NoValueError
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
        raise NoValueError from err


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Dict():
            return Pairs((_key(key), _value(value)) for key, value in zip(node.keys, node.values, strict=True))
        case ast.List() | ast.Tuple():
            return [_value(item) for item in node.elts]
        case ast.Constant(value=str() | int() | float() | None):
            return node.value
        case ast.Name():
            return _NO_VALUE.get(node.id.lower(), node.id)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    raise NoValueError


def _key(node: ast.expr | None) -> str:
    value = node.id if isinstance(node, ast.Name) else _value(node) if node else None
    if isinstance(value, str | int | float):
        return str(value)
    raise NoValueError


def _read_json5(text: str) -> Any:
    if len(text) > JSON5_LIMIT:
        raise NoValueError
    try:
        return json5.loads(text, object_pairs_hook=Pairs)
    except (ValueError, RecursionError) as err:
        raise NoValueError from err
