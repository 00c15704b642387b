"""Random streams named by integers, so that a picture depends on what it shows and never on when it was drawn."""

import numpy as np

# First entry of every stream's name: two purposes never share random numbers.
PERSON, OUTFIT, UNIFORM, CAMERA, SCENE, TRACK, IMAGE, LAYOUT = range(1, 9)


def stream(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    """The generator of one thing, e.g. `stream(seed, PERSON, domain_number, identity)`; all numbers are >= 0."""
    return np.random.default_rng(np.random.SeedSequence((seed, purpose, *numbers)))


def pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """One key, drawn with probability proportional to its weight."""
    mark = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        mark -= weight
        if mark < 0:
            return name
    return next(reversed(weights))


def between(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A number drawn evenly from an interval."""
    return bounds[0] + (bounds[1] - bounds[0]) * float(rng.random())
