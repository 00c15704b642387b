"""Kinds of clothing: their geometry and their PETA attribute words. Lengths are fractions of the stature."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Upper:
    """One kind of upper garment."""

    words: tuple[str, ...]  # PETA attribute words
    sleeve: float  # fraction of the arm covered: 0 none, 0.45 short, 1 long
    hem: float  # height of the lower edge above the sole
    loose: float  # cloth between body and silhouette
    flare: float = 1.0  # width at the hem over width at the hip
    front: str = "closed"  # closed | open | buttons | zip
    collar: float = 0.0  # height above the neck's base


@dataclass(frozen=True)
class Lower:
    """One kind of lower garment."""

    words: tuple[str, ...]
    cover: float  # fraction of the leg covered, 1 = to the ankle
    loose: float
    skirt: bool = False


UPPERS: dict[str, Upper] = {
    "tank": Upper(("upperBodyNoSleeve", "upperBodyCasual"), 0.0, 0.50, 0.004),
    "tshirt": Upper(("upperBodyTshirt", "upperBodyShortSleeve", "upperBodyCasual"), 0.42, 0.495, 0.008),
    "longsleeve": Upper(("upperBodyLongSleeve", "upperBodyCasual"), 1.0, 0.50, 0.007),
    "shirt": Upper(("upperBodyLongSleeve", "upperBodyFormal"), 1.0, 0.505, 0.008, front="buttons", collar=0.006),
    "sweater": Upper(("upperBodySweater", "upperBodyLongSleeve", "upperBodyCasual"), 1.0, 0.495, 0.013),
    "hoodie": Upper(("upperBodyOther", "upperBodyLongSleeve", "upperBodyCasual"), 1.0, 0.49, 0.016, collar=0.012),
    "jacket": Upper(
        ("upperBodyJacket", "upperBodyLongSleeve", "upperBodyCasual"), 1.0, 0.495, 0.014, front="open", collar=0.01
    ),
    "puffer": Upper(
        ("upperBodyJacket", "upperBodyLongSleeve", "upperBodyCasual"), 1.0, 0.485, 0.028, front="zip", collar=0.016
    ),
    "suit": Upper(("upperBodySuit", "upperBodyLongSleeve", "upperBodyFormal"), 1.0, 0.46, 0.012, front="open"),
    "coat": Upper(
        ("upperBodyOther", "upperBodyLongSleeve", "upperBodyFormal"), 1.0, 0.34, 0.018, 1.15, "buttons", 0.014
    ),
    "parka": Upper(("upperBodyJacket", "upperBodyLongSleeve", "upperBodyCasual"), 1.0, 0.40, 0.024, 1.05, "zip", 0.016),
    "dress": Upper(("upperBodyOther", "upperBodyShortSleeve", "upperBodyCasual"), 0.30, 0.30, 0.005, 1.45),
}
LOWERS: dict[str, Lower] = {
    "trousers": Lower(("lowerBodyTrousers", "lowerBodyCasual"), 1.0, 0.010),
    "wide": Lower(("lowerBodyTrousers", "lowerBodyCasual"), 1.0, 0.020),
    "suit": Lower(("lowerBodySuits", "lowerBodyFormal"), 1.0, 0.010),
    "jeans": Lower(("lowerBodyJeans", "lowerBodyCasual"), 1.0, 0.005),
    "leggings": Lower(("lowerBodyTrousers", "lowerBodyCasual"), 0.96, 0.001),
    "shorts": Lower(("lowerBodyShorts", "lowerBodyCasual"), 0.42, 0.009),
    "short_skirt": Lower(("lowerBodyShortSkirt", "lowerBodyCasual"), 0.36, 0.012, skirt=True),
    "long_skirt": Lower(("lowerBodyLongSkirt", "lowerBodyCasual"), 0.78, 0.014, skirt=True),
    "bare": Lower(("lowerBodyCasual",), 0.12, 0.002),  # under a dress
}
PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "thin_stripes": ("upperBodyThinStripes",),
    "thick_stripes": ("upperBodyThickStripes",),
    "plaid": ("upperBodyPlaid",),
    "print": ("upperBodyLogo",),
    "dots": ("upperBodyOther",),
    "yoke": (),  # two colours: shoulders and sleeves apart from the rest
    "sides": (),  # two colours: panels under the arms
    "band": (),  # two colours: one broad band across the chest
}
SHOE_WORDS: dict[str, str] = {
    "shoes": "footwearShoes",
    "leather": "footwearLeatherShoes",
    "sneakers": "footwearSneakers",
    "boots": "footwearBoots",
    "sandals": "footwearSandals",
}
BAG_WORDS: dict[str, str] = {
    "none": "carryingNothing",
    "backpack": "carryingBackpack",
    "messenger": "carryingMessengerBag",
    "handbag": "carryingOther",
    "shopping": "carryingPlasticBags",
}
HEADWEAR_WORDS: dict[str, str] = {"cap": "accessoryHat", "beanie": "accessoryHat", "hood": "accessoryOther"}
