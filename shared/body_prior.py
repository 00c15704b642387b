"""The body prior: median boxes of body parts in a person crop, the same for every image.

Medians over 630 hand-labelled crops of Clothing Co-Parsing (Yang, Luo, Lin, CVPR 2014) of the part's box relative to
the crop; on those crops they reach a mean IoU of 0.51 (head), 0.68 (upper body) and 0.68 (legs).
"""

from shared.geometry import Box, scaled

PROPORTIONS: dict[str, Box] = {  # fractions of the crop's width and height
    "head": Box(0.364, 0.036, 0.709, 0.210),
    "upper_body": Box(0.161, 0.175, 0.869, 0.500),
    "legs": Box(0.195, 0.446, 0.788, 0.972),
}


def prior_box(part: str, width: int, height: int) -> Box | None:
    """The body prior's box of a part in a crop of width x height pixels; None for a part without a known proportion."""
    box = PROPORTIONS.get(part)
    return scaled(box, width, height) if box else None
