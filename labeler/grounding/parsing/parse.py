"""From the text of an answer to one outcome per part, for every text there is: nothing here raises.

An answer is read as JSON, else as a Python literal or JSON5, whole or as blocks inside other words; a name and a box
belong together only inside one entry. What is left as plain text is read only where it leaves no doubt: each line names
one part and has one box, or each box follows directly after its name, every time. Otherwise it is unparseable.
"Not visible" and "could not be read" never look alike, and an answer that did not end by itself is never OK.

What stands before the last `</think>` is no answer. What comes of a part that is answered in several ways: one rule,
in claims.py. What words beside the boxes come to: doubts.py for values, wording.py for running text.
"""

import re
from collections.abc import Callable, Sequence

from labeler.grounding.parsing import wording
from labeler.grounding.parsing.claims import AMBIGUOUS, UNPARSEABLE, Claims, Parsed
from labeler.grounding.parsing.doubts import is_other_size
from labeler.grounding.parsing.loose_json import NoValueError, ascii_brackets, read_json
from labeler.grounding.parsing.numbers import MARKUP, TAKEN_OUT, runs, without
from labeler.grounding.parsing.question import Asked
from labeler.grounding.parsing.text import PlainText
from labeler.grounding.parsing.values import Values
from labeler.grounding.vocabulary import SHARED, Vocabulary
from shared.schemas import RAW_TEXT_LIMIT, LabelStatus

__all__ = ["AMBIGUOUS", "READ_LIMIT", "Parsed", "kept_text", "parse_answer"]

READ_LIMIT = 6_000  # characters after the thoughts; a box answer has under 200. The worst of this length found among
# some 2,500 texts (nested brackets, many keys, JSON5 with comments, tables) takes 0.13 s of processor time
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_TRIED_MARKS = 3  # of "final answer", from the last one
_THOUGHTS = re.compile(r"(?:</think(?:ing)?>|</thoughts?>|</reasoning>|\[/THINK\]|◁/think▷)", re.IGNORECASE)
_THOUGHT_BEGINS = re.compile(r"(?:<think(?:ing)?>|<thoughts?>|<reasoning>|\[THINK\]|◁think▷)", re.IGNORECASE)
_FINAL = re.compile(
    r"<answer>|\b(?:final|corrected) (?:answer|result|boxes)\b[\s:*]{0,4}(?:(?:is|are)\b)?|\\boxed", re.IGNORECASE
)
_OTHER_ORDER = re.compile(  # of the coordinates, said so
    r"c?xc?ywh|yxyx|xxyy|ltwh|\bx\W{1,4}y\W{1,6}(?:and\W)?w(?:idth)?\b|\by_?(min|1|0)[^\w|]{1,6}x_?\1\b"
    r"|[\[(]\s{0,4}y_?(?:min|1|0)\b|[\[(]\s{0,4}x\w{0,8}\W{1,4}y\w{0,8}\W{1,4}w"
    r"|\btop[^\w|]{1,4}left[^\w|]{1,4}bottom\b|\bleft[^\w|]{1,4}top[^\w|]{1,6}(?:and\W)?w(?:idth)?\b"
    r"|\bx_?(?:min|1|0)[^\w|]{1,6}x_?(?:max|2|1)\b|\bmin[ _]?([xy])[^\w|]{1,6}(?:max[ _]?\2|min[ _]?x)\b"
    r"|\b(?:coco|yolo)\b|[\"']axes[\"']\s{0,3}:"
    r"|\bwidth\W{1,3}(?:and\W)?height\b|\b(?:first|second|third|last)\s(?:two\s)?(?:number|value|coordinate)s?\b"
    r"|\by[^\w|]{1,4}x[^\w|]{1,4}y\b|\brows?[^\w|]{1,4}col",
    re.IGNORECASE,
)
_CONVENTION = re.compile(  # `"bbox_format": "coco"`, `"unit": "percent"`, `"scale": 100`
    r"\b(?:(?:b?box|boxes|coord\w{0,8})?[_ ]?(?P<order>format|mode|convention)|(?P<base>relative[_ ]to|origin)"
    r"|(?P<unit>units?|scale))[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?P<said>[^\"'\n]{1,60})",
    re.IGNORECASE,
)
_OUR_ORDER = re.compile(
    r"\W{0,2}(?:xyxy|x_?(?:min|1|0)\b\W{1,4}y|x1y1x2y2|ltrb|left\W{1,4}top\W{1,4}right|(?:pascal_?)?voc|abs|pix|px"
    r"|json|list|array|png|jpe?g|rgb|joint|[{\[])",
    re.IGNORECASE,
)
_LATEX = re.compile(
    r"\\(?:begin|end|boxed|text|textbf|hline|item|quad|toprule|midrule|bottomrule|left|right)(?![a-z])"
    r"(?:\{(?:tabular|itemize|enumerate|array|[lcr|]{1,10})\}){0,2}"
)
_TOKEN = re.compile(r"<\|/?(?P<name>[^|<>]{1,40})\|>")
_TOKEN_WORDS = frozenset("object ref box quad det im vision begin start end of eot eos text endoftext id".split())
_STATED_SIZE = re.compile(r"\b\d{2,5}\s?(?:x|\u00d7|\*|by)\s?\d{2,5}\b(?:\s?(?:px|pixels?)\b)?", re.IGNORECASE)
_ENUMERATED = re.compile(r"^[ \t(]*\d{1,2}[.):]|\b2d\b", re.IGNORECASE | re.MULTILINE)
_SIZE_NAME = re.compile(r"\b(?:image|picture)?\s?(?:size|resolution|dimensions)\b", re.IGNORECASE)
_OUR_BASE = re.compile(
    r"(?:top|upper)[\s_-]?left|(?:the )?(?:whole |full |original |input )?(?:image|picture|photo|crop|frame)\b",
    re.IGNORECASE,
)
_OUR_UNIT = re.compile(
    r"\W{0,2}(?:pix|px|(?:0\s?(?:-|to|\.\.)\s?)?(?:1000\b|999\b)|thousandth|per ?mille|\u2030)", re.IGNORECASE
)
_NOT_ANSWERED = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|as an ai|(un|not )able to|i (can't|cannot|can not|won't|will not))\b",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"\bas an ai\b|\b(?:un|not )able to\b|\b(?:can't|cannot|won't) (?:help|assist|provide|identify)", re.IGNORECASE
)


def parse_answer(
    text: str | None,
    finish_reason: str | None,
    parts: Sequence[str],
    vocabulary: Vocabulary = SHARED,
    number: Callable[[str | float], float] = float,
    size: tuple[float, float] | None = None,
) -> dict[str, Parsed]:
    """One outcome for each of `parts`. Never raises, whatever the text.

    Args:
        text: the model's answer.
        finish_reason: why it ended, as the server says; anything but "stop" is no usable answer.
        parts: what the question asked for.
        vocabulary: to recognise parts called in other words.
        number: the coordinate that a number of the text stands for; may raise ValueError or OverflowError.
        size: width and height of the image in the unit of its coordinates; an answer that states another size, or any
            where this is None, is doubtful.
    """
    if finish_reason == "length":
        return dict.fromkeys(parts, Parsed(LabelStatus.TRUNCATED))
    if finish_reason == "content_filter":
        return dict.fromkeys(parts, Parsed(LabelStatus.REFUSED))
    if finish_reason != "stop" or not text or not text.strip():
        return dict.fromkeys(parts, UNPARSEABLE)
    text = _after_thoughts(text).strip()
    if len(text) > READ_LIMIT:  # its end may take back what its beginning says
        return dict.fromkeys(parts, UNPARSEABLE)
    asked = Asked(tuple(dict.fromkeys(parts)), vocabulary, number, size)
    if (simple := asked.simple_brackets(text)) is not None:
        return simple
    fenced = _FENCED.fullmatch(text) if text[:1] == "`" else None
    try:
        value = read_json(fenced[1] if fenced else text)
    except NoValueError:
        pass
    else:
        if (simple := asked.simple(value)) is not None:
            return simple
        if isinstance(value, str):  # a text inside a text
            text = value
    return _read(text, asked)


def kept_text(text: str | None) -> str | None:
    """The raw answer, cut to what a label row keeps."""
    return text[:RAW_TEXT_LIMIT] if text else None


def _after_thoughts(text: str) -> str:
    """What follows the last thought that ended; nothing where one did not."""
    if "think" not in text.lower() and "<" not in text:
        return text
    ends = list(_THOUGHTS.finditer(text))
    if ends:
        text = text[ends[-1].end() :]
    begins = _THOUGHT_BEGINS.search(text)
    return text[: begins.start()] if begins else text


def _read(text: str, asked: Asked) -> dict[str, Parsed]:
    text = ascii_brackets(text)
    if _OTHER_ORDER.search(text) or any(map(_is_other_convention, _CONVENTION.finditer(text))):
        return dict.fromkeys(asked.parts, UNPARSEABLE)
    for final in list(_FINAL.finditer(text))[: -_TRIED_MARKS - 1 : -1]:
        after = text[final.end() :]
        if any(len(run.numbers) == 4 for run in runs(after)):
            before = text[: final.start()]
            doubtful = any(len(run.numbers) == 4 for run in runs(before)) or not _is_small_talk(before, asked)
            found = _read_all(after, asked)
            return {part: _doubted(one) if doubtful else one for part, one in found.items()}
    return _read_all(text, asked)


def _read_all(text: str, asked: Asked) -> dict[str, Parsed]:
    claims = Claims(asked.parts)
    values = Values(asked, claims)
    left = values.take(text)
    PlainText(asked, claims).take(left)
    if not any(claim.said.box for claim in claims.all):
        if _REFUSED.search(left):
            return dict.fromkeys(asked.parts, Parsed(LabelStatus.REFUSED))
    elif wording.takes_back(left) or wording.is_other_thing(left, asked.all_names):
        return dict.fromkeys(asked.parts, UNPARSEABLE)
    found = (
        claims.settled()
        if wording.people_told_apart(text, asked.all_names) < 2
        else dict.fromkeys(asked.parts, UNPARSEABLE)
    )
    if any(one.box for one in found.values()) and (
        values.doubtful
        or wording.is_numbered_otherwise(text, asked.all_names, asked.parts)
        or not _is_small_talk(left, asked)
    ):
        found = {part: _doubted(one) for part, one in found.items()}
    if all(one.status == LabelStatus.UNPARSEABLE for one in found.values()) and not claims.all:
        status = LabelStatus.REFUSED if _NOT_ANSWERED.search(text) else LabelStatus.UNPARSEABLE
        return dict.fromkeys(asked.parts, Parsed(status))
    return found


def _is_small_talk(text: str, asked: Asked) -> bool:
    """Whether nothing in the words of a text may change what its boxes, or those after it, mean."""
    if not text or text.isspace():
        return True
    for token in _TOKEN.finditer(text):
        if not _TOKEN_WORDS.issuperset(re.split(r"[_\W]+", token["name"].lower())):
            return False
    if wording.is_arithmetic(text):
        return False
    sizes = list(_STATED_SIZE.finditer(text))
    if sizes:
        if any(is_other_size(stated[0], asked.size) for stated in sizes):
            return False
        text = _SIZE_NAME.sub(" ", without(text, [stated.span() for stated in sizes]))
    text = MARKUP.sub(" ", text.replace("</", " <"))
    if wording.says_not(text):
        unseen = wording.unseen_parts(text.replace("_", " "), asked.all_names)
        text = without(text, [(start, end) for start, end, _ in unseen])
    return _all_known(text, asked) or _all_known(wording.without_phrases(text), asked)


def _all_known(text: str, asked: Asked) -> bool:
    """Whether all words of a text are known, and all numbers are boxes or count them."""
    numbers = runs(text)
    if numbers and TAKEN_OUT in text and all(len(run.numbers) < 4 for run in numbers):
        enumerated = _ENUMERATED.sub(" ", text)
        if any(not run.touched for run in runs(enumerated)):
            return False  # numbers that belong to no box
    words = _LATEX.sub(" ", without(text, [(run.start, run.end) for run in numbers]))
    return wording.is_small_talk(words, asked.all_names)


def _is_other_convention(stated: re.Match[str]) -> bool:
    """Whether an order or unit of the coordinates is stated that is not the one asked for."""
    ours = _OUR_ORDER if stated["order"] else _OUR_BASE if stated["base"] else _OUR_UNIT
    return not ours.match(stated["said"])


def _doubted(one: Parsed) -> Parsed:
    return Parsed(one.status, one.box, (AMBIGUOUS,)) if one.box else one
