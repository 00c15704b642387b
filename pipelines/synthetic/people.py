"""Identities: random body, skin, hair, clothes and bag, with the matching PETA attribute words."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipelines.synthetic.colours import CLOTH, DENIM, HAIR, SKIN, Rgb, blend, sample_colour
from pipelines.synthetic.domains import Domain, domain_called
from pipelines.synthetic.seeds import OUTFIT, PERSON, UNIFORM, choose, stream, uniform
from pipelines.synthetic.wardrobe import BAG_WORDS, HEADWEAR_WORDS, LOWERS, PATTERN_WORDS, SHOE_WORDS, UPPERS

UNIFORMS_PER_DOMAIN = 3
_LONG_HAIR = frozenset({"medium", "long", "ponytail"})


@dataclass(frozen=True)
class Body:
    """Proportions; 1 is average. Girth widens trunk and limbs."""

    stature: float
    girth: float
    shoulders: float
    hips: float
    waist: float
    legs: float
    head: float


@dataclass(frozen=True)
class Outfit:
    upper: str
    upper_word: str
    upper_rgb: Rgb
    second_rgb: Rgb  # the pattern's other colour
    inner_rgb: Rgb  # what shows under an open jacket
    pattern: str
    lower: str
    lower_word: str
    lower_rgb: Rgb
    texture_seed: int  # key of the random stream of prints and dots


@dataclass(frozen=True)
class Person:
    body: Body
    outfit: Outfit
    skin: Rgb
    hair: str  # bald | short | medium | long | ponytail | bun
    hair_rgb: Rgb
    headwear: str  # none | cap | beanie | hood
    headwear_rgb: Rgb
    beard: bool
    glasses: bool
    scarf_rgb: Rgb | None
    shoe: str
    shoe_rgb: Rgb
    bag: str
    bag_rgb: Rgb
    bag_side: int  # -1 or 1, in body axes
    attributes: tuple[str, ...]


@lru_cache(maxsize=8192)
def person(domain: str, identity: int, seed: int) -> Person:
    """Identity `identity` (>= 0) of a domain; deterministic. Raises ConfigError for an unknown domain."""
    settings = domain_called(domain)
    rng = stream(seed, PERSON, settings.number, identity)
    female = bool(rng.random() < 0.5)
    outfit = _outfit(settings, identity, seed, female, rng)
    age = choose(rng, {"Less30": 4, "Less45": 3.5, "Less60": 2, "Larger60": 1})
    hair, hair_word = _hair(rng, female, age)
    headwear, headwear_rgb = _headwear(rng, settings, outfit)
    scarf_word = choose(rng, dict.fromkeys(CLOTH, 1.0)) if rng.random() < settings.scarf_probability else None
    shoe = choose(rng, settings.shoes)
    shoe_word = choose(rng, _SHOE_COLOURS[shoe])
    bag = choose(rng, settings.bags)
    glasses = bool(rng.random() < 0.14)
    words = [
        f"personal{'Female' if female else 'Male'}",
        f"personal{age}",
        *_outfit_words(outfit),
        *(["hairBald"] if hair == "bald" else [f"hair{hair_word}", "hairLong" if hair in _LONG_HAIR else "hairShort"]),
        SHOE_WORDS[shoe],
        f"footwear{shoe_word}",
        BAG_WORDS[bag],
        *_accessory_words(headwear, scarf_word is not None, glasses),
    ]
    return Person(
        body=_body(rng, female),
        outfit=outfit,
        skin=blend(SKIN[int(rng.integers(len(SKIN)))], SKIN[int(rng.integers(len(SKIN)))], 0.3),
        hair=hair,
        hair_rgb=sample_colour(rng, HAIR[hair_word]),
        headwear=headwear,
        headwear_rgb=headwear_rgb,
        beard=bool(not female and rng.random() < 0.25),
        glasses=glasses,
        scarf_rgb=sample_colour(rng, CLOTH[scarf_word]) if scarf_word else None,
        shoe=shoe,
        shoe_rgb=sample_colour(rng, CLOTH[shoe_word]),
        bag=bag,
        bag_rgb=sample_colour(rng, CLOTH[choose(rng, _BAG_COLOURS[bag])]),
        bag_side=1 if rng.random() < 0.5 else -1,
        attributes=tuple(dict.fromkeys(words)),
    )


def _outfit(settings: Domain, identity: int, seed: int, female: bool, own: np.random.Generator) -> Outfit:
    """Clothes; some people share one of the domain's uniforms, so that clothes alone do not identify them."""
    if own.random() < settings.uniform_probability:
        rng = stream(seed, UNIFORM, settings.number, int(own.integers(UNIFORMS_PER_DOMAIN)))
        uppers = {kind: weight for kind, weight in settings.uppers.items() if kind != "dress"}
        lowers = {kind: weight for kind, weight in settings.lowers.items() if not LOWERS[kind].skirt}
    else:
        rng = stream(seed, OUTFIT, settings.number, identity)
        uppers = {kind: weight for kind, weight in settings.uppers.items() if female or kind != "dress"}
        lowers = {
            kind: weight
            for kind, weight in settings.lowers.items()
            if female or not (LOWERS[kind].skirt or kind == "leggings")
        }
    upper = choose(rng, uppers)
    lower = "bare" if upper == "dress" else "suit" if upper == "suit" else choose(rng, lowers)
    upper_word = choose(rng, settings.upper_colours)
    if upper == "suit":
        upper_word = choose(rng, {"Black": 3, "Grey": 2, "Blue": 2, "Brown": 0.6})
    upper_rgb = sample_colour(rng, CLOTH[upper_word])
    second_word = choose(rng, {word: 2 if word == "White" else 1 for word in CLOTH if word != upper_word})
    lower_word = "Blue" if lower == "jeans" and rng.random() < 0.75 else choose(rng, settings.lower_colours)
    lower_bounds = DENIM if lower == "jeans" and lower_word == "Blue" else CLOTH[lower_word]
    if upper in {"suit", "dress"}:
        lower_word, lower_rgb = upper_word, blend(upper_rgb, (0, 0, 0), 0.06)
    else:
        lower_rgb = sample_colour(rng, lower_bounds)
    return Outfit(
        upper=upper,
        upper_word=upper_word,
        upper_rgb=upper_rgb,
        second_rgb=sample_colour(rng, CLOTH[second_word]),
        inner_rgb=sample_colour(rng, CLOTH[choose(rng, {"White": 4, "Grey": 2, "Black": 2, "Blue": 1, "Red": 0.6})]),
        pattern="plain" if upper in {"suit", "coat"} else choose(rng, settings.patterns),
        lower=lower,
        lower_word=lower_word,
        lower_rgb=lower_rgb,
        texture_seed=int(rng.integers(2**31)),
    )


def _outfit_words(outfit: Outfit) -> list[str]:
    upper, lower = UPPERS[outfit.upper], LOWERS[outfit.lower]
    lower_words = ("lowerBodyShortSkirt", "lowerBodyCasual") if outfit.lower == "bare" else lower.words
    return [
        f"upperBody{outfit.upper_word}",
        *upper.words,
        *PATTERN_WORDS[outfit.pattern],
        f"lowerBody{outfit.lower_word}",
        *lower_words,
    ]


def _headwear(rng: np.random.Generator, settings: Domain, outfit: Outfit) -> tuple[str, Rgb]:
    kind = choose(rng, settings.headwear)
    rgb = sample_colour(rng, CLOTH[choose(rng, settings.upper_colours)])
    if kind != "hood":
        return kind, rgb
    if UPPERS[outfit.upper].collar < 0.01:
        return "none", rgb  # the garment has no hood
    return kind, blend(outfit.upper_rgb, (0, 0, 0), 0.12)


def _accessory_words(headwear: str, scarf: bool, glasses: bool) -> list[str]:
    words = [HEADWEAR_WORDS[headwear]] if headwear != "none" else []
    words += ["accessoryMuffler"] if scarf else []
    words += ["accessorySunglasses"] if glasses else []
    return words or ["accessoryNothing"]


def _body(rng: np.random.Generator, female: bool) -> Body:
    girth = float(np.clip(rng.normal(1.0, 0.14), 0.78, 1.42))
    return Body(
        stature=float(np.clip(rng.normal(0.97 if female else 1.02, 0.045), 0.86, 1.12)),
        girth=girth,
        shoulders=(0.92 if female else 1.04) * uniform(rng, (0.93, 1.08)),
        hips=(1.08 if female else 0.96) * uniform(rng, (0.93, 1.08)),
        waist=(0.92 if female else 1.0) * uniform(rng, (0.92, 1.06)) * (1 + max(0.0, girth - 1.1)),
        legs=uniform(rng, (0.96, 1.045)),
        head=uniform(rng, (0.94, 1.07)),
    )


def _hair(rng: np.random.Generator, female: bool, age: str) -> tuple[str, str]:
    if female:
        style = choose(rng, {"long": 4, "medium": 2.5, "ponytail": 2, "bun": 1, "short": 1})
    else:
        style = choose(rng, {"short": 7, "bald": 2.2 if age in {"Less60", "Larger60"} else 0.6, "medium": 0.7})
    old = {"Less60": 1.0, "Larger60": 4.0}.get(age, 0.0)
    word = choose(rng, {"Black": 4, "Brown": 3.5, "Yellow": 1.2, "Red": 0.4, "Grey": 1.2 * old, "White": 0.6 * old})
    return style, word


_SHOE_COLOURS: dict[str, dict[str, float]] = {
    "shoes": {"Black": 3, "Brown": 1, "Grey": 1},
    "leather": {"Black": 3, "Brown": 2},
    "sneakers": {"White": 4, "Black": 2, "Grey": 1.5, "Red": 0.6, "Blue": 0.8},
    "boots": {"Black": 3, "Brown": 3},
    "sandals": {"Brown": 3, "Black": 1, "White": 1},
}
_BAG_COLOURS: dict[str, dict[str, float]] = {
    "none": {"Black": 1},
    "backpack": {"Black": 3, "Blue": 1.5, "Grey": 1.5, "Red": 1, "Green": 0.8, "Yellow": 0.4, "Pink": 0.4},
    "messenger": {"Black": 3, "Brown": 2, "Grey": 1, "Green": 0.6},
    "handbag": {"Brown": 2, "Black": 2, "Red": 1, "White": 0.8, "Pink": 0.4},
    "shopping": {"White": 3, "Yellow": 0.8, "Red": 0.8, "Brown": 1.6, "Blue": 0.6},
}
