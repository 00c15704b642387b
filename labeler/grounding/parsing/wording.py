"""What the words around a part's name mean: whether a text names that part and nothing else, or says it is not visible.

All lists are closed: a word that is not in them makes the text mean something else, which is refused.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from labeler.grounding.vocabulary import any_of, any_of_numbered, places, plain

_PEOPLE = frozenset(
    (
        "person persons man woman boy girl people human pedestrian individual lady guy child adult male female rider"
    ).split()
)
_ARTICLES = frozenset("the a an his her their its this that these those both s".split())
_BOX_WORDS = frozenset("bounding box boxes bbox bboxes 2d coordinates coords coordinate region area xyxy".split())
_LEAD = (
    _PEOPLE | _ARTICLES | _BOX_WORDS | frozenset("whole entire full visible of for part label name detected".split())
)
_TAIL = _PEOPLE | _ARTICLES | _BOX_WORDS | frozenset("of in image picture photo".split())
_SENTENCE = frozenset(
    (
        "here is are was at and then also it has have sure okay ok found located positioned visible "
        "seen detected sentence describes answer result results final json python image picture photo in as follows "
        "whatever i can see be given by pixels response output text so"
    ).split()
)
_OPEN = frozenset(  # what follows describes the part
    "with wearing in walking standing holding carrying riding looking facing".split()
)
_NEGATION = re.compile(r"\b(?:not?|none|never|without|non|neither|nor|cannot)\b|n['’]t\b", re.IGNORECASE)
_REMARK = re.compile(r"\([^()]{0,200}\)")
_WORD = re.compile(r"[^\W_]+")
_BODY_PART = re.compile(r"\bbody[\s_-]parts?\b", re.IGNORECASE)
_CONTRARY = re.compile(r"\b(?:but|however|although|though|except|unless|mostly|only|yet|actually)\b", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"\b(?:wrong|incorrect|inaccurate|swapped|interchanged|mixed up|mistaken?|mistakes?|examples?|hypothetical(?:ly)?"
    r"|placeholders?|dummy|templates?|samples?|random|typical|arbitrary|default"
    r"|ejemplos?|exemples?|esempio|beispiel\w{0,2}"
    r"|mirrored|flipped|upside|rotated|upwards?|reflections?|mannequin|redo|retry|replace|real ones|would look"
    r"|percent(?:age)?s?|normali[sz]ed|fractions?|relative|nobody|no[ -]?one"
    r"|no (?:person|people|pedestrian|human|man|woman)|cannot see|can't see|can not see|blank"
    r"|(?:its|the) estimated (?:position|location|place)|oops|guess(?:ed|es|ing)?|made up|invented|disregard|ignore"
    r"|in the background|(?:another|different|other) (?:person|pedestrian|individual|man|woman)"
    r"|not (?:of |for )?the (?:one|person|pedestrian|man|woman))\b",
    re.IGNORECASE,
)
_EXAMPLE_SIGNS = re.compile(
    "\u793a\u4f8b|\u4f8b\u5b50|\u4f8b\u5982|\u4f8b\u3048\u3070|\uc608\uc2dc|\u043f\u0440\u0438\u043c\u0435\u0440"
)
_SMALL_TALK = (
    _LEAD
    | _TAIL
    | _SENTENCE
    | _PEOPLE
    | frozenset(
        "each every all body parts three following let me know if you more details hope happy to requested certainly "
        "course absolutely yes thanks thank based on given provided shown using format x y x0 y0 x1 y1 x2 y2 xmin ymin "
        "xmax ymax min max corner corners pixel px abs absolute unit object objects detection detections score scores "
        "confidence probability json5 list table yaml xml csv code result tight approximate approximately about "
        "these "
        "partially partly partial minor slightly occluded visible clearly shows show there this be ref quad name color "
        "analysis step description tool call answer think id number which where a b c d e f i ii iii iv const var def "
        "return import details summary covers covering represents corresponds data boundaries success successful "
        "successfully complete completed done report annotate detect locate find task".split()
    )
    | frozenset(  # tags and their attributes
        "ul ol li td tr th tbody thead p em strong br hr h1 h2 h3 h4 div span dl dt dd svg rect annotation annotations "
        "bndbox html pre area shape coords alt obj item items root response parameter parameters function calls invoke "
        "arguments label class type body bboxes det title points".split()
    )
)
_COLOURS = "black white grey gray red green blue yellow orange pink purple brown beige dark light navy denim".split()
_CLOTHES = (
    "hat cap beanie hood helmet glasses sunglasses shirt t tshirt sweater hoodie jacket coat vest suit tie dress skirt "
    "trousers pants jeans shorts leggings shoes sneakers boots scarf gloves backpack bag hair beard uniform top long "
    "short sleeved sleeves striped plain leather".split()
)
_WORN = rf"(?:[\s,-]+(?:an?|the|his|her|and|pair|of|{'|'.join((*_COLOURS, *_CLOTHES))})(?![^\W_]))+"
_CLOTHING = re.compile(_WORN, re.IGNORECASE)
_KNOWN_PHRASES = re.compile(
    r"\blet me know if you (?:need|want|would like|have)"
    r"(?: (?:any|more|other|further|anything|else|help|details|information|or|with|the|these|image))*"
    r"|\bi hope (?:this|that|it) (?:is helpful|helps?)"
    r"|\bi (?:cannot|can't|can not) (?:tell|say|identify) who (?:this|that|he|she|it)(?: person)? is,?(?: but)?"
    r"|\b(?:not|isn't|aren't) (?:fully|entirely|completely|wholly) visible|\bno other text\b|\bnot applicable\b"
    r"|\b(?:top|bottom|upper|lower)[\s-](?:left|right)\b|\bleft\W{1,3}top\W{1,3}right\W{1,3}bottom\b"
    r"|\blow(?:er)? resolution\b|\b(?:boxes|coordinates|given|shown|listed|as|see|are) (?:below|above)\b"
    r"|\btight(?:ly)? around\b|\bfrom top to bottom\b"
    r"|\b(?:confidence|score|probability|certainty)\W{0,5}\d{1,3}(?:\.\d{1,6})?\s?%?"
    r"|(?:^|\|)[ \t]*no\.?[ \t]*(?=\|)"
    rf"|\b(?:wears?|wearing|dressed in|with|in){_WORN}",
    re.IGNORECASE | re.MULTILINE,
)
_UNKNOWN_SIGN = re.compile(
    r"[^\w\s.,:;!()\[\]{}<>|/\\=_+*#\"'`@&\u2013\u2014\u2018\u2019\u201c-\u201f\u00ab\u00bb\u2022\u00b7\u2026\u2192"
    r"\u2705\u2713\u2714\u3001\u3002\uff0c\uff1a\uff1b\uff01\u300c-\u300f\u200b-\u200d\ufeff-]"
)
_NUMBERED_PERSON = re.compile(
    r"(?<![^\W_])(?:person|people|pedestrian|human|individual|man|woman|track|subject|pid)(?:[\s_-]?id)?[\s_#:\"'-]{0,5}"
    r"(?:[2-9]|[1-9]\d{1,3})(?!\d)",
    re.IGNORECASE,
)
_ARITHMETIC = re.compile(  # with a box, or a comparison; a face
    r"[\])][ \t]{0,3}(?:[+/\u00d7\u00f7][ \t]{0,3}[\d(\[]|[-*^][ \t]{0,3}\d)"
    r"|\d[ \t]{0,3}[*/+\u00d7\u00f7^][ \t]{0,3}[(\[]"
    r"|[!<>]=|<>|(?:^|\s)![^\W\d]|[:;]-?[(/]\s*$",
)
_STRUCK_OUT = re.compile(r"(?<!~)~~(?!~)|<(?:s|del|strike)>|[\u274c\u2717\u2718\u2716]", re.IGNORECASE)
_THIS_IS = re.compile(
    r"\b(?:this|that|it|box)\s(?:is|was|shows|marks|covers)\s(?:only\s|just\s|really\s)?(?:the|an?|his|her|its|their)\s"
    r"(?P<what>[a-z][a-z ]{0,30})",
    re.IGNORECASE,
)
_NO_THING = frozenset(  # what an answer may call itself or its picture
    "requested correct json list tight rough approximate best most full whole entire single clear low small crop "
    "cropped bit good standard visible view case one".split()
)
_PICTURES = frozenset("image picture photo".split())
_GENERIC = frozenset("part object bbox box visible occluded partially partly fully".split())
_APOLOGY = re.compile(r"^\s*(?:i'?m |i am )?sorry\W{1,3}(?:but\s)?", re.IGNORECASE)
_WHERE = r"(?:\s+(?:here|in (?:this|the) (?:image|picture|photo|frame|crop|view)))?"
_UNSEEN = (
    r"(?:(?:not|isn't|aren't)\s+(?:clearly\s+)?"
    r"(?:visible|shown|present|seen|found|detected|located|identified"
    r"|(?:in|within) (?:the )?(?:image|picture|frame|view))"
    r"|(?:cannot|can't|can not|could not|couldn't) be (?:seen|found|located|detected|identified|determined)"
    r"|hidden (?:by|behind) [a-z ]{1,30}|(?:fully |completely |entirely )?(?:absent|occluded|hidden|invisible)"
    r"|out of (?:sight|(?:the )?(?:frame|picture|image|view|shot))|outside (?:of )?the (?:frame|picture|image|view)"
    r"|cropped out)"
)
_NOTHING = re.compile(
    r"\W{0,3}(?:(?:it|they|this|this part|the part|part)\s+(?:is|are)\s+|it's\s+)?"
    rf"(?:{_UNSEEN}{_WHERE}|no|none|null|nil|n/?a|nothing"
    r"|missing|not applicable|no (?:visible )?(?:bounding )?(?:box|part))\W{0,3}",
    re.IGNORECASE,
)
_WHO = re.compile(
    r"(?<![^\W_])(?:(?P<noun>man|woman|boy|girl|lady|child)(?![^\W_])(?![\s_#-]{1,3}\d)"
    r"|(?:person|people|pedestrian|human|individual|man|woman|track|subject|pid)(?:[\s_-]?id)?[\s_#:\"'-]{0,5}(?P<number>\d{1,3}(?!\d)|[a-d](?![^\W_]))"
    r"|(?P<place>first|second|third|other|another|left|right)[\s_-](?:person|pedestrian|human|individual|man|woman|boy|girl)"
    r")",
    re.IGNORECASE,
)


def named_part(text: str, names: Mapping[str, str], *, sentence: bool = False) -> str | None:
    """The part that a label names, in its own words or among words that change nothing (`head of the man`).

    Args:
        names: the part behind every plain name, of the whole vocabulary.
        sentence: the text comes from running words (`the head is located at`), not from a label.

    None when it names none, several, or a thing beside a part (`hat on the head`), or says "not".
    """
    text = text.replace("_", " ")
    if _NEGATION.search(text):
        return None
    if len({part for *_, part in places(text, names)}) != 1:
        return None
    text = _BODY_PART.sub(" ", _REMARK.sub(" ", text))
    found = places(text, names)
    if not found or (sentence and len(found) > 1):  # `legs / lower body` is one label; a sentence names a part once
        return None
    edges = [0, *(edge for start, end, _ in found for edge in (start, end)), len(text)]
    before, *after = [_words(text[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    more = _SENTENCE if sentence else frozenset()
    if not all(word in _LEAD or word in more or word.isdigit() for word in before):
        return None
    for word in (word for words in after for word in words):
        if not sentence and word in _OPEN:
            break
        if not (word in _TAIL or word in more or word.isdigit()):
            return None
    return found[0][2]


def is_filler(text: str) -> bool:
    """Whether running words say nothing about what a box holds."""
    words = _words(text)
    if words and all(word in _PICTURES or word in _ARTICLES for word in words) and _PICTURES & {*words}:
        return False  # the box of the image itself
    return all(word in _SENTENCE or word in _ARTICLES or word in _BOX_WORDS or word == "of" for word in words)


def is_generic(text: str) -> bool:
    """Whether a label says no more than "a person" or "a body part"."""
    words = _words(_BODY_PART.sub(" ", text))
    return all(word in _PEOPLE or word in _ARTICLES or word in _GENERIC for word in words)


def has_words(text: str) -> bool:
    return any(not word.isdigit() for word in _words(text))


def says_not(text: str) -> bool:
    return bool(_NEGATION.search(text))


def says_nothing(value: str) -> bool:
    """Whether the whole of a value says that nothing is there: `none`, `not visible`."""
    return bool(_NOTHING.fullmatch(value.strip()))


def unseen_parts(text: str, names: Mapping[str, str]) -> Iterator[tuple[int, int, str]]:
    """(start, end, part) of every statement that a part is not visible, none where the text takes something back."""
    apology = _APOLOGY.match(text)
    begin = apology.end() if apology else 0
    if _CONTRARY.search(text, begin):
        return
    name = any_of(names)
    statement = re.compile(
        rf"(?P<lead>(?:^|[\n.;,:|!-])[^\n.;,:|!]{{0,60}}?){name}(?P<tail>[^\n.;,:|!\d]{{0,40}}?)"
        rf"(?:\s(?:is|are)\s+|\s(?=isn't|aren't|can|could)|\s?[:=|]\s{{0,3}}(?=\S))[\"'*]{{0,2}}"
        rf"(?:{_UNSEEN}{_WHERE}|null|none|n/a|no box)(?=\W{{0,3}}(?:[\n.;,|!}}]|$))",
        re.IGNORECASE,
    )
    for match in statement.finditer(text, begin):
        part = named_part(match["lead"] + match[2] + match["tail"], names, sentence=True)
        if part:
            yield match.start(2), match.end(), part
    without = re.compile(
        rf"(?:^|[\n.;!,]\s{{0,3}})(?:there\s(?:is|are)\s|there's\s|i\s(?:can\s)?(?:see|find|found)\s)?no\s(?:visible\s)?{name}"
        rf"(?:\s(?:visible|shown|present))?{_WHERE}(?=\s{{0,3}}(?:[\n.;!,]|$))"
        rf"|\b(?:i|we)\s(?:cannot|can't|can not|do not|don't)\ssee\s(?:the|a|any|his|her|their)\s{name}"
        rf"|\b(?:cannot|can't|can not|could not|couldn't|failed to|unable to)\s(?:find|locate|detect|identify)\s"
        rf"(?:(?:the|a|any|his|her|their)\s)?{name}",
        re.IGNORECASE,
    )
    for match in without.finditer(text, begin):
        (_, _, part), *_ = [*places(match[0], names), (0, 0, "")]
        if part:
            yield match.start(), match.end(), part


def people_told_apart(text: str, names: Mapping[str, str]) -> int:
    """How many people the words tell apart: `person 1` and `person 2`, `the man` and `the woman`, `head_1`, `head_2`.

    names: the part behind every plain name.
    """
    people = len({tuple(group and group.lower() for group in match.groups()) for match in _WHO.finditer(text)})
    numbered: dict[str, set[str]] = {}
    for match in re.finditer(any_of_numbered(names), text, re.IGNORECASE):
        numbered.setdefault(names.get(plain(match[1]), ""), set()).add(match[2])
    return max([people, *map(len, numbered.values())])


def is_numbered_otherwise(text: str, names: Mapping[str, str], parts: Sequence[str]) -> bool:
    """Whether a person, or a part, has a number above 1 that is not the part's place in the question: `person 2`.

    names: the part behind every plain name.
    """
    if _NUMBERED_PERSON.search(text):
        return True
    place = {part: str(index) for index, part in enumerate(parts, 1)}
    return any(
        match[2].lstrip("0") not in ("", "1", place.get(names.get(plain(match[1]), "")))
        for match in re.finditer(any_of_numbered(names), text, re.IGNORECASE)
    )


def takes_back(text: str) -> bool:
    """Whether words around the values of an answer say that these are wrong, in another space, or only an example."""
    if _TAKEN_BACK.search(text) or _EXAMPLE_SIGNS.search(text) or _STRUCK_OUT.search(text):
        return True
    return any(says_nothing(remark) for remark in _REMARK.findall(text))


def is_small_talk(text: str, names: Mapping[str, str]) -> bool:
    """Whether all words and signs around values, but whole phrases, are known to change nothing about them."""
    if _UNKNOWN_SIGN.search(text) or _NEGATION.search(text):
        return False
    for start, end, _ in reversed(places(text, names)):
        text = f"{text[:start]} {text[end:]}"
    return all(word in _SMALL_TALK or word.isdigit() for word in _words(text))


def is_arithmetic(text: str) -> bool:
    """Whether signs of a text compute with a box or compare it: `[1, 2, 3, 4] / 2`, `!=`."""
    return bool(_ARITHMETIC.search(text))


def without_phrases(text: str) -> str:
    """The text without whole phrases that change nothing about the values around them."""
    return _KNOWN_PHRASES.sub(" ", text)


def is_clothing(text: str) -> bool:
    """Whether a text names colours and clothes and nothing else."""
    return bool(_CLOTHING.fullmatch(f" {text.strip(' .')}"))


def is_other_thing(text: str, names: Mapping[str, str]) -> bool:
    """Whether words say that a box is "not the head", or "this is the hat"."""
    for match in _THIS_IS.finditer(text):
        words = _words(match["what"])[:1]
        known = _PEOPLE | _BOX_WORDS | _SENTENCE | _PICTURES | _NO_THING
        if words and words[0] not in known and not places(match["what"], names)[:1]:
            return True
    said_not = rf"\bnot\s(?:of\s|for\s)?(?:the\s|an?\s|his\s|her\s|their\s)?{any_of(names)}"
    return "not" in text.lower() and bool(re.search(said_not, text, re.IGNORECASE))


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def without_remarks(text: str) -> str:
    """The text without what stands in parentheses."""
    return _REMARK.sub(" ", text)
