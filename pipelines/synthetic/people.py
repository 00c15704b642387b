"""Who somebody is: body, skin, hair, clothes and bag, drawn by lot once per identity, with true attribute words."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipelines.synthetic.colours import CLOTH, DENIM, HAIR, SKIN, Rgb, mixed, shade_of
from pipelines.synthetic.domains import Domain, domain_called
from pipelines.synthetic.seeds import OUTFIT, PERSON, UNIFORM, between, pick, stream
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
    texture_seed: int  # names the random stream of prints and dots


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
    bag_side: int  # -1 or 1: the person's own side
    attributes: tuple[str, ...]


@lru_cache(maxsize=8192)
def person(domain: str, identity: int, seed: int) -> Person:
    """Identity `identity` (>= 0) of a domain; the same arguments give the same person. Raises ConfigError."""
    world = domain_called(domain)
    rng = stream(seed, PERSON, world.number, identity)
    female = bool(rng.random() < 0.5)
    outfit = _outfit(world, identity, seed, female, rng)
    age = pick(rng, {"Less30": 4, "Less45": 3.5, "Less60": 2, "Larger60": 1})
    hair, hair_word = _hair(rng, female, age)
    headwear, headwear_rgb = _headwear(rng, world, outfit)
    scarf_word = pick(rng, dict.fromkeys(CLOTH, 1.0)) if rng.random() < world.scarf_share else None
    shoe = pick(rng, world.shoes)
    shoe_word = pick(rng, _SHOE_COLOURS[shoe])
    bag = pick(rng, world.bags)
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
        skin=mixed(SKIN[int(rng.integers(len(SKIN)))], SKIN[int(rng.integers(len(SKIN)))], 0.3),
        hair=hair,
        hair_rgb=shade_of(rng, HAIR[hair_word]),
        headwear=headwear,
        headwear_rgb=headwear_rgb,
        beard=bool(not female and rng.random() < 0.25),
        glasses=glasses,
        scarf_rgb=shade_of(rng, CLOTH[scarf_word]) if scarf_word else None,
        shoe=shoe,
        shoe_rgb=shade_of(rng, CLOTH[shoe_word]),
        bag=bag,
        bag_rgb=shade_of(rng, CLOTH[pick(rng, _BAG_COLOURS[bag])]),
        bag_side=1 if rng.random() < 0.5 else -1,
        attributes=tuple(dict.fromkeys(words)),
    )


def _outfit(world: Domain, identity: int, seed: int, female: bool, own: np.random.Generator) -> Outfit:
    """Clothes; some people share one of the domain's uniforms, so that clothes alone do not tell them apart."""
    if own.random() < world.uniform_share:
        rng = stream(seed, UNIFORM, world.number, int(own.integers(UNIFORMS_PER_DOMAIN)))
        uppers = {kind: weight for kind, weight in world.uppers.items() if kind != "dress"}
        lowers = {kind: weight for kind, weight in world.lowers.items() if not LOWERS[kind].skirt}
    else:
        rng = stream(seed, OUTFIT, world.number, identity)
        uppers = {kind: weight for kind, weight in world.uppers.items() if female or kind != "dress"}
        lowers = {
            kind: weight
            for kind, weight in world.lowers.items()
            if female or not (LOWERS[kind].skirt or kind == "leggings")
        }
    upper = pick(rng, uppers)
    lower = "bare" if upper == "dress" else "suit" if upper == "suit" else pick(rng, lowers)
    upper_word = pick(rng, world.upper_colours)
    if upper == "suit":
        upper_word = pick(rng, {"Black": 3, "Grey": 2, "Blue": 2, "Brown": 0.6})
    upper_rgb = shade_of(rng, CLOTH[upper_word])
    second_word = pick(rng, {word: 2 if word == "White" else 1 for word in CLOTH if word != upper_word})
    lower_word = "Blue" if lower == "jeans" and rng.random() < 0.75 else pick(rng, world.lower_colours)
    lower_bounds = DENIM if lower == "jeans" and lower_word == "Blue" else CLOTH[lower_word]
    if upper in {"suit", "dress"}:
        lower_word, lower_rgb = upper_word, mixed(upper_rgb, (0, 0, 0), 0.06)
    else:
        lower_rgb = shade_of(rng, lower_bounds)
    return Outfit(
        upper=upper,
        upper_word=upper_word,
        upper_rgb=upper_rgb,
        second_rgb=shade_of(rng, CLOTH[second_word]),
        inner_rgb=shade_of(rng, CLOTH[pick(rng, {"White": 4, "Grey": 2, "Black": 2, "Blue": 1, "Red": 0.6})]),
        pattern="plain" if upper in {"suit", "coat"} else pick(rng, world.patterns),
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


def _headwear(rng: np.random.Generator, world: Domain, outfit: Outfit) -> tuple[str, Rgb]:
    kind = pick(rng, world.headwear)
    rgb = shade_of(rng, CLOTH[pick(rng, world.upper_colours)])
    if kind != "hood":
        return kind, rgb
    if UPPERS[outfit.upper].collar < 0.01:
        return "none", rgb  # nothing that a hood could belong to
    return kind, mixed(outfit.upper_rgb, (0, 0, 0), 0.12)


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
        shoulders=(0.92 if female else 1.04) * between(rng, (0.93, 1.08)),
        hips=(1.08 if female else 0.96) * between(rng, (0.93, 1.08)),
        waist=(0.92 if female else 1.0) * between(rng, (0.92, 1.06)) * (1 + max(0.0, girth - 1.1)),
        legs=between(rng, (0.96, 1.045)),
        head=between(rng, (0.94, 1.07)),
    )


def _hair(rng: np.random.Generator, female: bool, age: str) -> tuple[str, str]:
    if female:
        style = pick(rng, {"long": 4, "medium": 2.5, "ponytail": 2, "bun": 1, "short": 1})
    else:
        style = pick(rng, {"short": 7, "bald": 2.2 if age in {"Less60", "Larger60"} else 0.6, "medium": 0.7})
    old = {"Less60": 1.0, "Larger60": 4.0}.get(age, 0.0)
    word = pick(rng, {"Black": 4, "Brown": 3.5, "Yellow": 1.2, "Red": 0.4, "Grey": 1.2 * old, "White": 0.6 * old})
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
