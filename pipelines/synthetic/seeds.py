"""Random streams keyed by integers: an image depends on what it shows, never on the order of rendering."""

import numpy as np

# First integer of every key: two purposes never share random numbers.
PERSON, OUTFIT, UNIFORM, CAMERA, SCENE, TRACK, IMAGE, LAYOUT = range(1, 9)


def stream(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    """The generator of a key, e.g. `stream(seed, PERSON, domain_number, identity)`; all numbers are >= 0."""
    return np.random.default_rng(np.random.SeedSequence((seed, purpose, *numbers)))


def choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """A key, with probability proportional to its weight."""
    rest = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        rest -= weight
        if rest < 0:
            return name
    return next(reversed(weights))


def uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A sample of the uniform distribution over an interval."""
    return bounds[0] + (bounds[1] - bounds[0]) * float(rng.random())
