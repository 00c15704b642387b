"""Captions of people from the attribute words of PETA (Deng et al. 2014), with varied wording, and their tokens.

A *fact* is an attribute word that a caption can express; "upperBodyOther" and the like cannot be.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

Words = tuple[str, ...]

COLOURS: dict[str, Words] = {
    name: (name.lower(),)
    for name in ("Black", "White", "Blue", "Red", "Green", "Brown", "Yellow", "Orange", "Pink", "Purple")
} | {"Grey": ("grey", "gray")}
_HAIR_COLOURS = COLOURS | {"Yellow": ("blond", "fair"), "Red": ("red", "ginger")}
_PERSON_NOUNS: dict[tuple[str, str], Words] = {
    ("", ""): ("person", "pedestrian", "human being", "passer-by"),
    ("Male", ""): ("man", "male person", "guy"),
    ("Female", ""): ("woman", "female person", "lady"),
    ("", "Less15"): ("child", "kid"),
    ("Male", "Less15"): ("boy",),
    ("Female", "Less15"): ("girl",),
}
_AGES: dict[str, Words] = {
    "Less15": ("very young",),
    "Less30": ("young",),
    "Less45": ("grown-up", "adult"),
    "Less60": ("middle-aged",),
    "Larger60": ("old", "elderly"),
}
_STYLES: dict[str, Words] = {"Casual": ("casual",), "Formal": ("formal", "smart")}
_SLEEVES: dict[str, Words] = {
    "LongSleeve": ("long-sleeved",),
    "ShortSleeve": ("short-sleeved",),
    "NoSleeve": ("sleeveless",),
}
_PATTERNS: dict[str, Words] = {
    "ThinStripes": ("thin stripes",),
    "ThickStripes": ("broad stripes", "thick stripes"),
    "Plaid": ("a plaid pattern", "checks"),
    "Logo": ("a print", "a logo"),
    "VNeck": ("a v-neck",),
}
_UPPERS: dict[str, Words] = {
    "": ("top", "upper garment", "shirt or jacket"),
    "Tshirt": ("t-shirt", "tee"),
    "Jacket": ("jacket",),
    "Sweater": ("sweater", "pullover", "jumper"),
    "Suit": ("suit jacket", "blazer"),
}
_LOWERS: dict[str, Words] = {
    "": ("clothes on the legs", "legwear", "bottoms"),
    "Jeans": ("jeans", "denim trousers"),
    "Trousers": ("trousers", "pants"),
    "Suits": ("suit trousers", "dress pants"),
    "Shorts": ("shorts", "short trousers"),
    "HotPants": ("hot pants", "very short trousers"),
    "Capri": ("capri pants",),
    "ShortSkirt": ("a short skirt", "a miniskirt"),
    "LongSkirt": ("a long skirt",),
}
_SHOES: dict[str, Words] = {
    "": ("footwear",),
    "Shoes": ("shoes",),
    "LeatherShoes": ("leather shoes",),
    "Sneakers": ("sneakers", "trainers", "sports shoes"),
    "Boots": ("boots",),
    "Sandals": ("sandals",),
    "Stocking": ("stockings",),
}
_CARRYING: dict[str, Words] = {
    "Nothing": ("carrying nothing", "with empty hands", "without a bag"),
    "Backpack": ("carrying a backpack", "with a rucksack"),
    "MessengerBag": ("carrying a messenger bag", "with a shoulder bag"),
    "PlasticBags": ("carrying a plastic bag", "with a shopping bag"),
    "LuggageCase": ("with luggage", "pulling a trolley case"),
    "Suitcase": ("carrying a suitcase",),
    "Folder": ("carrying a folder",),
    "BabyBuggy": ("pushing a pram", "with a baby buggy"),
    "Umbrella": ("with an umbrella",),
}
_ACCESSORIES: dict[str, Words] = {
    "Hat": ("a hat", "something on the head", "a cap or hat"),
    "Sunglasses": ("glasses", "sunglasses"),
    "Muffler": ("a scarf",),
    "Headphone": ("headphones",),
    "Kerchief": ("a kerchief",),
    "HairBand": ("a hair band",),
}
_PREFIXES = (
    "a photo of ", "a picture of ", "an image of ", "a cropped photo of ", "a surveillance camera picture of ",
    "a low resolution photo of ", "cctv: ", "this is ", "",
)  # fmt: skip
_REGIONS: dict[str, tuple[str, Words]] = {  # region -> prefixes of its facts, its names in a caption
    "head": ("hair accessory", ("the head", "head and hair")),
    "upper_body": ("upperBody", ("the upper body", "the torso")),
    "legs": ("lowerBody footwear", ("the legs", "the lower body")),
}
_VALUES: dict[str, tuple[Mapping[str, Words], ...]] = {
    "personal": ({"Male": (), "Female": ()}, _AGES),
    "upperBody": (COLOURS, _STYLES, _SLEEVES, _PATTERNS, _UPPERS),
    "lowerBody": (COLOURS, _STYLES, _LOWERS),
    "hair": (_HAIR_COLOURS, {"Long": (), "Short": (), "Bald": ()}),
    "footwear": (COLOURS, _SHOES),
    "carrying": (_CARRYING,),
    "accessory": (_ACCESSORIES,),
}
FACTS: tuple[str, ...] = tuple(
    f"{topic}{name}" for topic, tables in _VALUES.items() for table in tables for name in table if name
)
_COLOUR_FACTS = frozenset(f"{topic}{name}" for topic in ("upperBody", "lowerBody") for name in COLOURS)


def facts_of(attributes: Iterable[str]) -> tuple[str, ...]:
    """The facts among a person's attribute words, each once, in the order of `FACTS`."""
    given = set(attributes)
    return tuple(fact for fact in FACTS if fact in given)


def sample_facts(facts: Sequence[str], rng: np.random.Generator) -> tuple[list[str], int]:
    """The facts in random order, and how many of them (2 to 8, or all) a caption states at least.

    Garment colours tend to come first; in one caption of four the facts about one body region do.
    """
    region = list(_REGIONS)[int(rng.integers(len(_REGIONS)))] if rng.random() < 0.25 else ""
    weights = [
        (4.0 if fact in _COLOUR_FACTS else 1.0) * (20.0 if _region_of(fact) == region else 1.0) for fact in facts
    ]
    keys = rng.random(len(facts)) ** (1 / np.array(weights))  # weighted without replacement (Efraimidis, Spirakis 2006)
    return [facts[index] for index in np.argsort(-keys)], min(int(rng.integers(2, 9)), len(facts))


def compose_caption(facts: Sequence[str], rng: np.random.Generator) -> str:
    """A caption that states exactly these facts, with random wording and order."""
    builder = CaptionBuilder(facts, rng)
    regions = {_region_of(fact) for fact in facts} - {""}
    if len(regions) == 1 and not builder.has("carrying") and rng.random() < 0.6:
        subject = f"{builder.choose(_REGIONS[regions.pop()][1])} of {builder.person()}"
    else:
        subject = builder.person()
    clauses = [*builder.clothes(), *builder.hair(), *builder.carried()]
    clauses = [clauses[index] for index in rng.permutation(len(clauses))]
    return builder.choose(_PREFIXES) + ", ".join([subject + (" " + clauses[0] if clauses else ""), *clauses[1:]])


def _region_of(fact: str) -> str:
    return next((name for name, (prefixes, _) in _REGIONS.items() if fact.startswith(tuple(prefixes.split()))), "")


class CaptionBuilder:
    """The clauses of one caption: facts grouped by topic, wording chosen at random."""

    def __init__(self, facts: Iterable[str], rng: np.random.Generator) -> None:
        self._rng = rng
        self._values: dict[str, list[str]] = {topic: [] for topic in _VALUES}
        for fact in facts:
            topic = next(name for name in _VALUES if fact.startswith(name))
            self._values[topic].append(fact.removeprefix(topic))

    def has(self, topic: str) -> bool:
        return bool(self._values[topic])

    def choose(self, words: Sequence[str]) -> str:
        return words[int(self._rng.integers(len(words)))]

    def _words(self, topic: str, table: Mapping[str, Words]) -> list[str]:
        return [self.choose(table[name]) for name in self._values[topic] if name in table]

    def _kind(self, topic: str, table: Mapping[str, Words]) -> str:
        return " and ".join(self._words(topic, table)) or self.choose(table[""])

    def person(self) -> str:
        gender = next((name for name in self._values["personal"] if name in ("Male", "Female")), "")
        age = next((name for name in self._values["personal"] if name in _AGES), "")
        known = _PERSON_NOUNS.get((gender, age))
        noun = self.choose(known or _PERSON_NOUNS[gender, ""])
        return _with_article(noun if known or not age else f"{self.choose(_AGES[age])} {noun}")

    def clothes(self) -> list[str]:
        clauses = []
        if self.has("upperBody"):
            words = [*self._words("upperBody", _STYLES), *self._words("upperBody", _SLEEVES)]
            colours = " and ".join(self._words("upperBody", COLOURS))
            garment = " ".join(filter(None, [*words, colours, self._kind("upperBody", _UPPERS)]))
            patterns = " and ".join(self._words("upperBody", _PATTERNS))
            clauses.append(_with_article(garment) + (f" with {patterns}" if patterns else ""))
        if self.has("lowerBody"):
            kind = self._kind("lowerBody", _LOWERS)
            article, kind = ("a ", kind.removeprefix("a ")) if kind.startswith("a ") else ("", kind)
            colours = " and ".join(self._words("lowerBody", COLOURS))
            clauses.append(article + " ".join(filter(None, [*self._words("lowerBody", _STYLES), colours, kind])))
        if self.has("footwear"):
            colours = " and ".join(self._words("footwear", COLOURS))
            clauses.append(f"{colours} {self._kind('footwear', _SHOES)}".strip())
        clauses += self._words("accessory", _ACCESSORIES)
        return [f"{self.choose(('wearing', 'in', 'dressed in', 'with'))} {clause}" for clause in clauses]

    def hair(self) -> list[str]:
        lengths = [name.lower() for name in self._values["hair"] if name in ("Long", "Short")]
        colours = " and ".join(self._words("hair", _HAIR_COLOURS))
        clauses = [f"with {' '.join([*lengths, colours]).strip()} hair"] if lengths or colours else []
        return clauses + (["with a bald head"] if "Bald" in self._values["hair"] else [])

    def carried(self) -> list[str]:
        return self._words("carrying", _CARRYING)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def tokenize(captions: Sequence[str], context_length: int) -> Tensor:
    """Tokens int64 [B, context_length], equal to open_clip's; a caption that is too long is truncated.

    Words are cached, so that thousands of captions a second are tokenized.
    """
    tokens = torch.zeros(len(captions), context_length, dtype=torch.int64)
    for row, caption in zip(tokens, captions, strict=True):
        # no token of CLIP's vocabulary crosses a space, so words can be encoded one by one
        words = [number for word in caption.split() for number in _word_tokens(word)]
        line = [_tokenizer().sot_token_id, *words[: context_length - 2], _tokenizer().eot_token_id]
        row[: len(line)] = torch.tensor(line)
    return tokens


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


@cache
def _word_tokens(word: str) -> tuple[int, ...]:
    return tuple(_tokenizer().encode(word))
