"""The parts that can be asked for: the shared ones first, then those that a user adds in a YAML file.

    feet: feet
    bag: [bag, backpack, handbag]   # the first are the words of the question, all are recognised in an answer

What is written there reaches a model's prompt and our search patterns, so it may be plain words only.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.schemas import PART_WORDS, PARTS
from shared.yaml_files import YamlFileError, read_mapping

MAX_ADDED = 16  # parts: every one makes a joint answer longer
MAX_WORDS = 12  # ways to call one part
_PART = re.compile(r"[a-z][a-z0-9_]{0,39}")
_WORDS = re.compile(r"[^\W_](?:[\w' -]{0,58}\w)?")
_SIDED = re.compile(r"\b(left|right)\b")
_SYNONYMS: dict[str, tuple[str, ...]] = {"upper_body": ("torso",), "legs": ("leg", "lower body")}
_FIX = "write one line per part, `name: words` or `name: [words, other words]`, e.g. `bag: [bag, backpack]`"


@dataclass(frozen=True)
class Vocabulary:
    """Parts in the order of questions and rows, each with the words of its question and then other words for it."""

    words: Mapping[str, tuple[str, ...]]

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.words)

    def asked(self, part: str) -> str:
        """The words a question uses for the part."""
        return self.words[part][0]

    def names(self, parts: Sequence[str]) -> dict[str, str]:
        """The part behind every plain name that an answer about `parts` may use."""
        return {plain(name): part for part in parts for name in (part, *self.words.get(part, ()))}

    def is_sided(self, part: str) -> bool:
        """Whether the part is the left or the right one of two: in a mirrored image its name means the other."""
        return any(_SIDED.search(plain(name)) for name in (part, *self.words.get(part, ())))


@lru_cache(maxsize=1024)
def plain(name: str) -> str:
    """Lower case, single spaces, no underscores or dashes."""
    return re.sub(r"[\s_-]+", " ", name.strip().lower())


def any_of(names: Iterable[str]) -> str:
    """A regular expression for one of the plain names as a whole word, longer ones first, in any of their spellings."""
    return rf"\b({_spellings(tuple(names))})\b"


def any_of_numbered(names: Iterable[str]) -> str:
    """`any_of` with a number behind the name that belongs to a key or a label: `head_2:`, `"head 2"`."""
    return rf"\b({_spellings(tuple(names))})[\s_#-]{{0,2}}(\d{{1,2}})(?:[\"'\u2019\u201d]|\s?[:=])"


@lru_cache(maxsize=64)
def _spellings(names: tuple[str, ...]) -> str:
    longest_first = sorted(names, key=len, reverse=True)
    return "|".join(re.escape(name).replace(r"\ ", r"[\s_-]+") for name in longest_first)


def places(text: str, names: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """(start, end, part) of every name of a part in a text, in its order."""
    found = re.finditer(any_of(names), text, re.IGNORECASE)
    named = [(match.start(), match.end(), names.get(plain(match[0]))) for match in found]
    return [(start, end, part) for start, end, part in named if part]  # some letters ignore case in their own way


SHARED = Vocabulary({part: (PART_WORDS[part], *_SYNONYMS.get(part, ())) for part in PARTS})


def load_vocabulary(path: Path | None) -> Vocabulary:
    """The shared parts, followed by those of the file at `path`, in its order.

    Raises ConfigError for a file that is missing or no such list, and for names or words that are taken or no words.
    """
    if path is None:
        return SHARED
    words = dict(SHARED.words)
    taken = SHARED.names(SHARED.parts)
    for part, value in _read(path).items():
        called = _words_of(part, value, path)
        for name in dict.fromkeys(map(plain, (part, *called))):
            if name in taken:
                raise _unfit(f"part {part!r}: {name!r} already means {taken[name]!r}", path)
            taken[name] = part
        words[part] = called
    if len(words) > len(PARTS) + MAX_ADDED:
        raise _unfit(f"{len(words) - len(PARTS)} parts; at most {MAX_ADDED} can be added", path)
    return Vocabulary(words)


def _read(path: Path) -> dict[Any, Any]:
    try:
        return read_mapping(path)
    except OSError as err:
        raise ConfigError(
            f"the list of parts cannot be read ({err.strerror})", path=path, fix="set LABELER_PARTS_FILE to a YAML file"
        ) from err
    except YamlFileError as err:
        raise _unfit(str(err), path) from err


def _words_of(part: Any, value: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(part, str) or not _PART.fullmatch(part):
        raise _unfit(f"{part!r} is not a valid part name (lower case letters, digits, underscores)", path)
    words = value if isinstance(value, list) else [value]
    if not 1 <= len(words) <= MAX_WORDS or not all(isinstance(word, str) and _WORDS.fullmatch(word) for word in words):
        raise _unfit(
            f"part {part!r}: {value!r} is not a word or a list of words (letters, digits, spaces, dashes)", path
        )
    return tuple(words)


def _unfit(what: str, path: Path) -> ConfigError:
    return ConfigError(f"the list of parts: {what}", path=path, fix=_FIX)
