"""The four domains: distributions of clothes, scenes and cameras, as weights and intervals."""

from dataclasses import dataclass

from shared.errors import ConfigError

Interval = tuple[float, float]
Weights = dict[str, float]


@dataclass(frozen=True)
class Domain:
    """One domain. Lengths in pixels are for an image of 128 pixels height and scale with the image."""

    number: int  # part of every random stream's key: never reuse one
    title: str
    scene: str  # kind of background
    uppers: Weights
    lowers: Weights
    upper_colours: Weights
    lower_colours: Weights
    patterns: Weights
    shoes: Weights
    bags: Weights
    headwear: Weights
    scarf_probability: float
    uniform_probability: float  # of wearing one of the domain's three shared outfits
    sun: Interval  # 0 diffuse light, 1 direct light with cast shadows
    exposure: Interval
    contrast: Interval
    saturation: Interval
    warmth: Interval  # -1 blue .. 1 orange
    tint_spread: float  # standard deviation of the cameras' white balance
    noise: Interval  # standard deviation in grey levels
    blur_px: Interval
    jpeg_quality: tuple[int, int]
    pitch_deg: Interval  # of the camera below the horizon
    fill: Interval  # height of the person over height of the crop
    occluder_probability: float
    truncation_probability: float  # of a crop without the feet or the head


PLAZA = Domain(
    number=1,
    title="Generated: sunny summer square",
    scene="plaza",
    uppers={"tank": 2, "tshirt": 6, "shirt": 1.5, "longsleeve": 1, "dress": 2.2, "jacket": 0.4},
    lowers={"shorts": 4, "jeans": 2.5, "trousers": 1.5, "short_skirt": 1.5, "long_skirt": 0.7, "leggings": 0.8},
    upper_colours={"White": 4, "Blue": 2, "Red": 1.5, "Yellow": 1.4, "Pink": 1.4, "Green": 1.2, "Orange": 1, "Black": 2,
                   "Grey": 1.5, "Purple": 0.7},
    lower_colours={"Blue": 3, "White": 1.5, "Brown": 1.6, "Black": 1.8, "Grey": 1.5, "Red": 0.5, "Green": 0.6},
    patterns={"plain": 5, "thin_stripes": 1.2, "thick_stripes": 1, "print": 2.2, "dots": 0.9, "plaid": 0.5, "yoke": 0.5,
              "sides": 0.4, "band": 0.6},
    shoes={"sneakers": 4, "sandals": 2.5, "shoes": 2},
    bags={"none": 4, "backpack": 1.8, "messenger": 1.4, "handbag": 1.5, "shopping": 0.8},
    headwear={"none": 8, "cap": 2},
    scarf_probability=0.0,
    uniform_probability=0.12,
    sun=(0.7, 1.0), exposure=(1.00, 1.25), contrast=(1.0, 1.15), saturation=(1.0, 1.25), warmth=(0.0, 0.22),
    tint_spread=0.06, noise=(1.0, 3.5), blur_px=(0.0, 0.55), jpeg_quality=(80, 95), pitch_deg=(4, 20),
    fill=(0.84, 0.94), occluder_probability=0.12, truncation_probability=0.08,
)  # fmt: skip
CAMPUS = Domain(
    number=2,
    title="Generated: autumn campus under clouds",
    scene="campus",
    uppers={"hoodie": 3.5, "jacket": 3, "sweater": 2, "parka": 1.6, "coat": 1.4, "puffer": 0.8, "longsleeve": 1},
    lowers={"jeans": 5, "trousers": 2.5, "leggings": 1.4, "wide": 0.8, "short_skirt": 0.5, "long_skirt": 0.5},
    upper_colours={"Grey": 3, "Green": 2, "Brown": 2.2, "Blue": 2.2, "Black": 2, "Red": 1.2, "Orange": 0.6,
                   "Purple": 0.6, "White": 0.6, "Yellow": 0.5},
    lower_colours={"Blue": 3, "Black": 2.5, "Brown": 1.5, "Grey": 1.6, "Green": 0.4},
    patterns={"plain": 5.5, "yoke": 1.3, "plaid": 1.2, "print": 1, "band": 0.8, "thick_stripes": 0.6, "sides": 0.6},
    shoes={"sneakers": 4, "boots": 2, "shoes": 2},
    bags={"none": 2.2, "backpack": 4.5, "messenger": 1.8, "handbag": 0.7},
    headwear={"none": 7, "beanie": 1.8, "cap": 0.9, "hood": 0.8},
    scarf_probability=0.18,
    uniform_probability=0.15,
    sun=(0.05, 0.3), exposure=(0.90, 1.12), contrast=(0.74, 0.92), saturation=(0.60, 0.85), warmth=(-0.25, 0.0),
    tint_spread=0.05, noise=(2.0, 5.0), blur_px=(0.4, 1.1), jpeg_quality=(60, 88), pitch_deg=(8, 26),
    fill=(0.74, 0.88), occluder_probability=0.16, truncation_probability=0.08,
)  # fmt: skip
MALL = Domain(
    number=3,
    title="Generated: shopping mall in warm light",
    scene="mall",
    uppers={"shirt": 2.5, "longsleeve": 2, "sweater": 1.8, "jacket": 1.8, "suit": 1.6, "tshirt": 1.6, "dress": 1.6,
            "hoodie": 0.8, "coat": 0.8},
    lowers={"trousers": 3, "jeans": 2.5, "suit": 1.2, "leggings": 1.4, "short_skirt": 1.4, "long_skirt": 0.8,
            "wide": 1},
    upper_colours={"White": 2.5, "Black": 3, "Blue": 1.6, "Grey": 2, "Red": 1.4, "Pink": 1.3, "Brown": 1.4, "Purple": 1,
                   "Green": 0.8, "Yellow": 0.5},
    lower_colours={"Black": 4, "Blue": 2.2, "Grey": 1.8, "Brown": 1.4, "White": 0.8, "Red": 0.3},
    patterns={"plain": 6, "thin_stripes": 1, "thick_stripes": 0.6, "print": 0.9, "dots": 0.8, "plaid": 0.9, "yoke": 0.3,
              "sides": 0.3, "band": 0.5},
    shoes={"leather": 3, "shoes": 2.5, "sneakers": 2, "boots": 1},
    bags={"none": 2.5, "shopping": 3.2, "handbag": 2.6, "messenger": 1, "backpack": 0.8},
    headwear={"none": 10, "cap": 0.6},
    scarf_probability=0.07,
    uniform_probability=0.15,
    sun=(0.2, 0.45), exposure=(0.90, 1.18), contrast=(0.86, 1.02), saturation=(0.85, 1.10), warmth=(0.25, 0.65),
    tint_spread=0.07, noise=(2.0, 6.0), blur_px=(0.2, 0.9), jpeg_quality=(65, 90), pitch_deg=(10, 30),
    fill=(0.78, 0.96), occluder_probability=0.14, truncation_probability=0.12,
)  # fmt: skip
NIGHT = Domain(
    number=4,
    title="Generated: street at night",
    scene="night",
    uppers={"puffer": 3, "coat": 2.6, "jacket": 2.6, "parka": 2, "hoodie": 2, "suit": 0.8, "sweater": 0.6},
    lowers={"jeans": 4, "trousers": 4, "leggings": 1, "wide": 0.8, "suit": 0.8, "short_skirt": 0.4},
    upper_colours={"Black": 5, "Grey": 2, "Blue": 2.2, "Brown": 1.2, "Red": 1.2, "White": 1, "Green": 0.8,
                   "Yellow": 0.5, "Purple": 0.5},
    lower_colours={"Black": 5, "Blue": 3, "Grey": 1.5, "Brown": 0.7},
    patterns={"plain": 7, "yoke": 1, "band": 1, "print": 0.5, "sides": 0.7, "thick_stripes": 0.3},
    shoes={"boots": 2.5, "shoes": 2.5, "sneakers": 2.5, "leather": 1},
    bags={"none": 4, "backpack": 2, "messenger": 1.4, "handbag": 1.2, "shopping": 0.6},
    headwear={"none": 5, "beanie": 2.2, "hood": 1.6, "cap": 0.8},
    scarf_probability=0.22,
    uniform_probability=0.2,
    sun=(0.35, 0.7), exposure=(0.62, 0.98), contrast=(0.95, 1.12), saturation=(0.55, 0.85), warmth=(-0.75, 1.05),
    tint_spread=0.08, noise=(5.0, 11.0), blur_px=(0.5, 1.3), jpeg_quality=(45, 78), pitch_deg=(6, 28),
    fill=(0.78, 0.93), occluder_probability=0.14, truncation_probability=0.1,
)  # fmt: skip

BY_NAME: dict[str, Domain] = {"plaza": PLAZA, "campus": CAMPUS, "mall": MALL, "night": NIGHT}
DOMAINS: tuple[str, ...] = tuple(BY_NAME)


def domain_called(name: str) -> Domain:
    """The domain of that name. Raises ConfigError naming the known ones."""
    if name not in BY_NAME:
        raise ConfigError(f"there is no generated domain {name!r}", fix=f"choose one of: {', '.join(DOMAINS)}")
    return BY_NAME[name]
