"""Held-out identities of the sources, for model selection; targets are never looked at."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reid.data.training_set import TrainingSet
from reid.metrics.ground_truth import as_numbers
from reid.metrics.retrieval import evaluate
from shared.errors import DataError


@dataclass(frozen=True)
class HeldOut:
    """Images of held-out identities: `data` with labels of its own, and which images are queries: bool [N]."""

    data: TrainingSet
    is_query: np.ndarray

    def mean_ap(self, features: np.ndarray) -> float:
        """Features [N, F] of the images -> mean average precision in percent, the mean over the sources."""
        scores, cameras = [], as_numbers(list(self.data.cameras))
        datasets = np.array(list(self.data.datasets))
        for source in sorted(set(datasets.tolist())):
            here = datasets == source
            sides = [
                column[here & side]
                for side in (self.is_query, ~self.is_query)
                for column in (features, self.data.labels, cameras)
            ]
            scores.append(evaluate(*sides).summary()["mean_ap"])
        return float(np.mean(scores))


def hold_out(data: TrainingSet, share: float, seed: int) -> tuple[TrainingSet, HeldOut]:
    """Split off a share of each source's identities, at random but the same for the same seed.

    Only identities with a valid query are held out: an image with a match from another camera, where cameras are
    labelled. One such image of each, drawn at random, is the query; all other held-out images of its source are the
    gallery.

    Returns the training set without them, its labels numbered anew, and what was held out.
    Raises DataError when no identity can be held out, or fewer than two would be left to train on.
    """
    generator = np.random.default_rng((seed, len(data)))
    is_query, chosen = np.zeros(len(data), dtype=bool), set()
    of_label = np.split(np.argsort(data.labels, kind="stable"), np.cumsum(np.bincount(data.labels))[:-1])
    cameras = list(data.cameras)
    for source in data.sources:
        own = [label for label, (name, _) in enumerate(data.identities) if name == source]
        findable = {label: _findable(of_label[label], cameras) for label in own}
        candidates = [label for label in own if len(findable[label])]
        for place in generator.permutation(len(candidates))[: max(round(share * len(own)), 1)]:
            chosen.add(candidates[place])
            is_query[generator.choice(findable[candidates[place]])] = True
    held = np.isin(data.labels, sorted(chosen))
    if not chosen or len(data.identities) - len(chosen) < 2:
        raise DataError(
            f"{len(chosen)} of {len(data.identities)} identities can be held out for validation",
            fix="set data.validation_share=0, or add sources with several cameras and more identities",
        )
    return data.only(~held), HeldOut(data.only(held), is_query[held])


def _findable(indices: np.ndarray, cameras: Sequence[int | None]) -> np.ndarray:
    """Those of an identity's images that have a match after those of the same camera are removed."""
    own = [cameras[index] for index in indices.tolist()]
    own_camera = Counter(own)
    others = [len(own) - (1 if camera is None else own_camera[camera]) for camera in own]
    return indices[np.array(others) > 0]
