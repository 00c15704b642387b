"""Whether the words in a value, beside the boxes, are all known to change nothing about them.

Every key, label, wrapper and string of a value is looked at. The words that are harmless are listed, here for keys and
in wording.py for strings; all others make the boxes AMBIGUOUS that they may be about:

- a key that holds boxes (`"previous_frame": {...}`, `"legs (shoes only)": [...]`): those inside;
- what stands beside boxes and holds none (`"note": "of the cyclist"`, `"offset": [20, 0]`): all boxes of that object or
  list, also deeper ones;
- what stands inside the value of one part: that part's box.

The entry of another thing, with its own label or a known name and its own box, says nothing about the others. A size
of the image is harmless where it is the one that the coordinates are measured in; it is never used to rescale.
"""

import re
from typing import Any

from labeler.grounding.parsing import wording
from labeler.grounding.parsing.loose_json import Pairs
from labeler.grounding.parsing.numbers import MARKUP, runs
from labeler.grounding.parsing.question import Asked
from labeler.grounding.parsing.tables import COORDINATES, bare_key
from labeler.grounding.vocabulary import places, plain

_PERSON = frozenset(
    "person people persons pedestrian pedestrians human humans individual subject man woman track pid".split()
)
_HOLDERS = (  # words of keys that may hold the boxes
    _PERSON
    | frozenset(
        (
            "bbox bboxes box boxes bbox2d bboxes2d 2d bounding boundingbox boundingboxes boundingbox2d coordinates "
            "coords coordinate location locations position rect rectangle region regions area xyxy points corners "
            "vertices label labels part parts name names object objects category class element elements entity "
            "entities result results answer answers response detection detections output outputs data annotation "
            "annotations prediction predictions item items instance instances body bodypart bodyparts the a an of in "
            "and for is are image img picture photo arguments parameters args report annotate detect locate full "
            "whole entire detected requested given identified final found visible od caption to phrase grounding"
        ).split()
    )
)
_THINGS = frozenset(  # beside the parts asked for, with a box of their own
    (
        "hat cap helmet hair face neck bag backpack handbag shirt jacket coat trousers pants jeans skirt dress "
        "shoes shoe feet foot arm arms hand hands umbrella phone bicycle bike"
    ).split()
)
_KEYS = (
    _HOLDERS
    | _THINGS
    | frozenset(
        (
            "polygon mask segmentation keypoints sub x y x0 y0 x1 y1 x2 y2 xmin ymin xmax ymax min max left top right "
            "bottom tl br p1 p2 categories classes classname description type title target ref text textlabels file "
            "filename path url score scores confidence confidences conf certainty probability probabilities prob "
            "logprob quality visibility present presence exists status state valid success ok occluded occlusion "
            "truncated truncation crowd iscrowd isoccluded isvisible ispresent istruncated difficult partial "
            "partially partly missing absent invisible notvisible notfound notdetected notpresent error errors "
            "failure hidden unseen note notes comment comments remark remarks reason reasons reasoning explanation "
            "thought thoughts thinking analysis message task summary details info meta metadata format mode "
            "convention unit units schema space order origin id ids index idx uuid number count total n num version "
            "model engine parent tool function call color colour colors colours clothing clothes appearance wearing "
            "attribute attributes gender \u7f6e\u4fe1\u5ea6 \u5f97\u5206 \u4fe1\u983c\u5ea6 \uc2e0\ub8b0\ub3c4 "
            "confianza confiance konfidenz confian\u00e7a "
            "\u0443\u0432\u0435\u0440\u0435\u043d\u043d\u043e\u0441\u0442\u044c \u0627\u0644\u062b\u0642\u0629"
        ).split()
    )
)
_FALSE_KEYS = frozenset("multiple other others crowd blurred normalized cropped cut is are people".split())
_SCORES = frozenset(
    "score confidence conf certainty probability prob confianza confiance konfidenz \u7f6e\u4fe1\u5ea6".split()
)
_SEEN = frozenset("visible visibility present found detected exists status state valid success ok".split())
_UNSEEN = frozenset(
    "missing absent invisible notvisible notfound notdetected notpresent error errors failure hidden unseen".split()
)
_SCORE_WORDS = re.compile(r"\s*(?:very )?(?:high|certain|sure|good)\s*|\s*\d{1,3}(?:\.\d{1,9})?\s?%?\s*", re.IGNORECASE)
_IDENTIFIERS = frozenset("schema version id ids uuid".split())
_FILES = frozenset("file filename path url".split())
_FILE_WORDS = frozenset(
    "jpg jpeg png webp bmp gif tif tiff http https data crop image img photo picture person".split()
)
_PLAIN_WORD = re.compile(r"(?<![a-z0-9])[a-z]{3,}(?![a-z0-9])")
_NAME_LIKE = re.compile(r"(?=[^\s]*[\d./])[\w./:@-]{1,200}")  # of a file, an identifier: one word, no plain one
_WORN_KEYS = frozenset("color colour colors colours clothing clothes appearance wearing attribute attributes".split())
_SIZE_OF = frozenset(
    "image img picture photo frame input sent resized original size resolution shape dimensions".split()
)
_SIZES = frozenset("width height w h size resolution shape dimensions dims".split())
_SIZE_TEXT = re.compile(r"\s*(\d{1,5})\s?(?:x|\u00d7|\*|,|by)\s?(\d{1,5})\s?(?:px|pixels?)?\s*", re.IGNORECASE)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_KEY_WORD = re.compile(r"[^\W_]+")
_ODD = re.compile(r"[^\w\s.,:;!()\[\]/'#<>-]")


class Doubts:
    """Looks at the words of the values of one answer."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._texts: dict[str, bool] = {}

    def of_key(self, key: str, *, holds_parts: bool = False) -> bool:
        """Whether a key may say that what it holds is about another thing; `holds_parts`: entries of several parts."""
        if plain(key) in self.asked.all_names:
            return False
        if self.asked.part_of(key):
            return self.of_text(key)
        words = self._key_words(key)
        bare = bare_key(key)
        if bare in ("box2d", "boxes2d"):
            return True  # of families that write y before x
        if bare in _KEYS and not holds_parts:
            return False
        return bool(_ODD.search(key)) or not all(
            word in (_HOLDERS if holds_parts else _KEYS) or word in ("0", "1") for word in words
        )

    def of_text(self, text: str, part: str | None = None) -> bool:
        """Whether a string is not known to change nothing; beside the box of `part`, also whether it names another."""
        if text not in self._texts:
            self._texts[text] = not self._is_harmless(text)
        return self._texts[text] or (
            part is not None
            and any(other != part for *_, other in places(text.replace("_", " "), self.asked.all_names))
        )

    def beside(self, data: Pairs | list[Any]) -> bool:
        """Whether a member that holds no box may be about the boxes of the others."""
        if isinstance(data, Pairs):
            return any(
                not (isinstance(value, str | list | Pairs) and self.asked.part_of(key))  # that is about this part alone
                and not holds_box(value)
                and self._in_member(key, value, None)
                for key, value in data
            )
        return any(not holds_box(value) and self.within(value) for value in data)

    def within(self, value: Any, part: str | None = None) -> bool:
        """Whether anything in a value is not known to be harmless; `part`: what its box is said to be of."""
        if isinstance(value, str):
            return self.of_text(value, part)
        if isinstance(value, Pairs):
            return any(self._in_member(key, one, part) for key, one in value)
        return isinstance(value, list) and any(self.within(one, part) for one in value)

    def _in_member(self, key: str, value: Any, part: str | None) -> bool:
        if value is None or value in ("", [], ()):
            return False
        words = self._key_words(key)
        if _SIZES.issuperset(words[-1:]) and _SIZE_OF.issuperset(words[:-1]) and words:
            return self._is_other_size(words[-1], value)
        if value is False:
            return not all(word in _KEYS or word in _FALSE_KEYS for word in words)
        if self.of_key(key):
            return True
        if value is True:
            return bool(_UNSEEN & {*words})
        if isinstance(value, int | float):
            return value not in (0, 1) if _PERSON & {*words} else value <= 0 and bool((_SCORES | _SEEN) & {*words})
        if isinstance(value, str):
            if _SCORES & {*words}:
                return not _SCORE_WORDS.fullmatch(value)
            if _WORN_KEYS & {*words}:
                return not wording.is_clothing(value)
            if words[-1:] in (["model"], ["engine"]) and " " not in value and not wording.takes_back(value):
                return False
            if _FILES & {*words} or words[-1:] in (["image"], ["img"]) or words[-2:] == ["image", "name"]:
                return not (_NAME_LIKE.fullmatch(value) and _FILE_WORDS.issuperset(_PLAIN_WORD.findall(value.lower())))
            if _IDENTIFIERS & {*words}:
                return not _NAME_LIKE.fullmatch(value) and self.within(value, part)
        if isinstance(value, Pairs) and _WORN_KEYS & {*words}:
            return any(
                not (
                    _WORN_KEYS.issuperset(self._key_words(inner)) and isinstance(one, str) and wording.is_clothing(one)
                )
                and self._in_member(inner, one, part)
                for inner, one in value
            )
        if isinstance(value, Pairs) and words and words[-1] in ("image", "img", "size", "resolution"):
            return any(self._in_member(inner, one, part) for inner, one in value)
        return self.within(value, part if (other := self.asked.part_of(key)) is None else other)

    def _key_words(self, key: str) -> list[str]:
        """The words of a key but the names of parts."""
        key = _HUMP.sub(" ", key).replace("_", " ")
        for start, end, _ in reversed(places(key, self.asked.all_names)):
            key = f"{key[:start]} {key[end:]}"
        return [word.lower() for word in _KEY_WORD.findall(key)]

    def _is_harmless(self, text: str) -> bool:
        if plain(text) in self.asked.all_names:
            return True
        if wording.is_arithmetic(text):
            return False
        text = MARKUP.sub(" ", text).replace("_", " ")
        if wording.says_nothing(text):
            return True
        for start, end, _ in reversed(list(wording.unseen_parts(text, self.asked.all_names))):
            text = f"{text[:start]} {text[end:]}"
        text = wording.without_phrases(text)
        named = bool(places(text, self.asked.all_names))
        for run in reversed(runs(text)):
            if len(run.numbers) < 4 and not named:
                return False
            text = f"{text[: run.start]} {text[run.end :]}"
        return wording.is_small_talk(text, self.asked.all_names)

    def _is_other_size(self, name: str, value: Any) -> bool:
        """Whether a stated size of the image is not the one that the coordinates are measured in."""
        if self.asked.size is None:
            return True
        width, height = self.asked.size
        if name in ("width", "w"):
            return value not in (width, f"{width:g}")
        if name in ("height", "h"):
            return value not in (height, f"{height:g}")
        if isinstance(value, str):
            return is_other_size(value, self.asked.size)
        if isinstance(value, Pairs):
            return any(key not in ("width", "height", "w", "h") or self._is_other_size(key, one) for key, one in value)
        return bool(value != [width, height])


def is_other_size(text: str, size: tuple[float, float] | None) -> bool:
    """Whether `640 x 480` is not the size (width, height) of coordinates; also where that is unknown."""
    stated = _SIZE_TEXT.fullmatch(text)
    return stated is None or size is None or (float(stated[1]), float(stated[2])) != size


def holds_box(value: Any) -> bool:
    """Whether four numbers stand together anywhere in a value, as a list, as named coordinates or in a string."""
    if isinstance(value, str):
        return any(len(run.numbers) >= 4 for run in runs(value))
    if isinstance(value, Pairs):
        keys = {bare_key(key) for key, _ in value}
        return any(keys.issuperset(names) for names in COORDINATES) or any(holds_box(one) for _, one in value)
    if not isinstance(value, list):
        return False
    if len(value) >= 4 and sum(_is_number(one) for one in value) >= 4:
        return True
    points = [one for one in value if isinstance(one, list) and len(one) == 2 and all(map(_is_number, one))]
    return len(points) >= 2 or any(holds_box(one) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and value.strip().isdigit())
