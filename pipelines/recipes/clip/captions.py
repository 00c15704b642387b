"""Sentences about a person, made from the attribute words of PETA (Deng et al. 2014), many ways to say the same.

A *fact* is an attribute word that a sentence can express; "upperBodyOther" and the like cannot be.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Words = tuple[str, ...]

COLOURS: dict[str, Words] = {
    name: (name.lower(),)
    for name in ("Black", "White", "Blue", "Red", "Green", "Brown", "Yellow", "Orange", "Pink", "Purple")
} | {"Grey": ("grey", "gray")}
_HAIR_COLOURS = COLOURS | {"Yellow": ("blond", "fair"), "Red": ("red", "ginger")}
_WHO: dict[tuple[str, str], Words] = {
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
_OPENINGS = (
    "a photo of ", "a picture of ", "an image of ", "a cropped photo of ", "a surveillance camera picture of ",
    "a low resolution photo of ", "cctv: ", "this is ", "",
)  # fmt: skip
_REGIONS: dict[str, tuple[str, Words]] = {  # region -> first words of its facts, how a sentence calls it
    "head": ("hair accessory", ("the head", "head and hair")),
    "upper_body": ("upperBody", ("the upper body", "the torso")),
    "legs": ("lowerBody footwear", ("the legs", "the lower body")),
}
_SAYABLE: dict[str, tuple[Mapping[str, Words], ...]] = {
    "personal": ({"Male": (), "Female": ()}, _AGES),
    "upperBody": (COLOURS, _STYLES, _SLEEVES, _PATTERNS, _UPPERS),
    "lowerBody": (COLOURS, _STYLES, _LOWERS),
    "hair": (_HAIR_COLOURS, {"Long": (), "Short": (), "Bald": ()}),
    "footwear": (COLOURS, _SHOES),
    "carrying": (_CARRYING,),
    "accessory": (_ACCESSORIES,),
}
FACTS: tuple[str, ...] = tuple(
    f"{about}{name}" for about, tables in _SAYABLE.items() for table in tables for name in table if name
)
_FOREMOST = frozenset(f"{about}{name}" for about in ("upperBody", "lowerBody") for name in COLOURS)


def facts_of(attributes: Iterable[str]) -> tuple[str, ...]:
    """What a sentence can say of somebody with these attribute words, each once, in the order of `FACTS`."""
    given = set(attributes)
    return tuple(fact for fact in FACTS if fact in given)


def by_lot(facts: Sequence[str], rng: np.random.Generator) -> tuple[list[str], int]:
    """The facts in a random order, and how many of them (2 to 8, or all) a caption begins with.

    Garment colours tend to come first; in one of four captions the facts about one part of the body do.
    """
    region = list(_REGIONS)[int(rng.integers(len(_REGIONS)))] if rng.random() < 0.25 else ""
    weights = [(4.0 if fact in _FOREMOST else 1.0) * (20.0 if _region_of(fact) == region else 1.0) for fact in facts]
    keys = rng.random(len(facts)) ** (1 / np.array(weights))  # weighted without replacement (Efraimidis, Spirakis 2006)
    return [facts[place] for place in np.argsort(-keys)], min(int(rng.integers(2, 9)), len(facts))


def sentence(facts: Iterable[str], rng: np.random.Generator) -> str:
    """Say exactly these facts, in words and an order drawn by lot."""
    said = _Said(facts, rng)
    regions = {_region_of(fact) for fact in facts} - {""}
    others = said.any("carrying")
    if len(regions) == 1 and not others and rng.random() < 0.6:
        owner = f"{said.one(_REGIONS[regions.pop()][1])} of {said.who()}"
    else:
        owner = said.who()
    clauses = [*said.worn(), *said.hair(), *said.carried()]
    clauses = [clauses[place] for place in rng.permutation(len(clauses))]
    return said.one(_OPENINGS) + ", ".join([owner + (" " + clauses[0] if clauses else ""), *clauses[1:]])


def _region_of(fact: str) -> str:
    return next((name for name, (starts, _) in _REGIONS.items() if fact.startswith(tuple(starts.split()))), "")


class _Said:
    """The facts by what they are about, and the lots drawn for one sentence."""

    def __init__(self, facts: Iterable[str], rng: np.random.Generator) -> None:
        self._rng = rng
        self._about: dict[str, list[str]] = {about: [] for about in _SAYABLE}
        for fact in facts:
            about = next(name for name in _SAYABLE if fact.startswith(name))
            self._about[about].append(fact.removeprefix(about))

    def any(self, about: str) -> bool:
        return bool(self._about[about])

    def one(self, words: Sequence[str]) -> str:
        return words[int(self._rng.integers(len(words)))]

    def _of(self, about: str, table: Mapping[str, Words]) -> list[str]:
        return [self.one(table[name]) for name in self._about[about] if name in table]

    def _kind(self, about: str, table: Mapping[str, Words]) -> str:
        return " and ".join(self._of(about, table)) or self.one(table[""])

    def who(self) -> str:
        gender = next((name for name in self._about["personal"] if name in ("Male", "Female")), "")
        age = next((name for name in self._about["personal"] if name in _AGES), "")
        known = _WHO.get((gender, age))
        noun = self.one(known or _WHO[gender, ""])
        return _with_article(noun if known or not age else f"{self.one(_AGES[age])} {noun}")

    def worn(self) -> list[str]:
        clauses = []
        if self.any("upperBody"):
            words = [*self._of("upperBody", _STYLES), *self._of("upperBody", _SLEEVES)]
            colours = " and ".join(self._of("upperBody", COLOURS))
            garment = " ".join(filter(None, [*words, colours, self._kind("upperBody", _UPPERS)]))
            patterns = " and ".join(self._of("upperBody", _PATTERNS))
            clauses.append(_with_article(garment) + (f" with {patterns}" if patterns else ""))
        if self.any("lowerBody"):
            kind = self._kind("lowerBody", _LOWERS)
            article, kind = ("a ", kind.removeprefix("a ")) if kind.startswith("a ") else ("", kind)
            colours = " and ".join(self._of("lowerBody", COLOURS))
            clauses.append(article + " ".join(filter(None, [*self._of("lowerBody", _STYLES), colours, kind])))
        if self.any("footwear"):
            colours = " and ".join(self._of("footwear", COLOURS))
            clauses.append(f"{colours} {self._kind('footwear', _SHOES)}".strip())
        clauses += self._of("accessory", _ACCESSORIES)
        return [f"{self.one(('wearing', 'in', 'dressed in', 'with'))} {clause}" for clause in clauses]

    def hair(self) -> list[str]:
        lengths = [name.lower() for name in self._about["hair"] if name in ("Long", "Short")]
        colours = " and ".join(self._of("hair", _HAIR_COLOURS))
        clauses = [f"with {' '.join([*lengths, colours]).strip()} hair"] if lengths or colours else []
        return clauses + (["with a bald head"] if "Bald" in self._about["hair"] else [])

    def carried(self) -> list[str]:
        return self._of("carrying", _CARRYING)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
