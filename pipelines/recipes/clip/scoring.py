"""Zero-shot evaluation on held-out people: text-to-image retrieval, and classification of garment colours."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.recipes.clip.captions import COLOURS, compose_caption, tokenize
from pipelines.recipes.clip.people import People
from reid.data.transforms import normalised

CAPTIONS = 8  # per description or colour; their mean feature is compared (prompt ensemble)
MAX_IMAGES = 8  # per person: tracklets are near-duplicates
RANKS = (1, 5, 10)
GARMENTS = {"upper": "upperBody", "lower": "lowerBody"}
_BATCH = 256


def score_people(clip: Any, people: People) -> dict[str, Any]:
    """Both scores in percent, each with its chance level.

    Args:
        clip: an open_clip model in eval mode.
        people: not trained on.
    """
    people = limit_images(people)
    images = encode_images(clip, people.pixels)
    return {
        "people": len(people.names),
        "pictures": len(people.pixels),
        "retrieval": _retrieval(clip, people, images),
        **{f"{name}_colour": _colour(clip, people, images, garment) for name, garment in GARMENTS.items()},
    }


def limit_images(people: People, most: int = MAX_IMAGES) -> People:
    """At most `most` images of each person, evenly spaced."""
    kept: list[int] = []
    for number in range(len(people.names)):
        own = np.flatnonzero(people.owners == number)
        kept += own[np.unique(np.linspace(0, len(own) - 1, most).round().astype(int))].tolist() if len(own) else []
    return People(people.pixels[kept], people.owners[kept], people.names, people.facts)


@torch.no_grad()
def encode_images(clip: Any, pixels: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] -> L2-normalised image features [N, E]."""
    return torch.cat(
        [
            clip.encode_image(
                normalised(torch.from_numpy(np.ascontiguousarray(part.transpose(0, 3, 1, 2)))), normalize=True
            )
            for part in (pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH))
        ]
    )


@torch.no_grad()
def encode_descriptions(clip: Any, descriptions: Iterable[Sequence[str]]) -> Tensor:
    """L2-normalised text features [n, E] of n descriptions: the mean over several captions of the same facts."""
    rng = np.random.default_rng(0)
    features = []
    for facts in descriptions:
        tokens = tokenize([compose_caption(facts, rng) for _ in range(CAPTIONS)], clip.context_length)
        features.append(clip.encode_text(tokens, normalize=True).mean(dim=0))
    return F.normalize(torch.stack(features), dim=1)


def retrieval_scores(similarity: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """Recall at each rank and mAP in percent, and their expected values for a random ranking.

    Args:
        similarity: [Q, N] of queries and images.
        relevant: bool [Q, N], at least one true in each row; N >= max(RANKS).
    """
    order = np.argsort(-similarity, axis=1, kind="stable")
    hits = np.take_along_axis(relevant, order, axis=1)
    count, totals = hits.shape[1], hits.sum(axis=1)
    precision = hits.cumsum(axis=1) / np.arange(1, count + 1)
    scores = {"mean_ap": float(((precision * hits).sum(axis=1) / totals).mean())}
    chance = {"mean_ap": float(np.mean([_chance_ap(count, int(total)) for total in totals]))}
    for rank in RANKS:
        scores[f"recall_{rank}"] = float(hits[:, :rank].any(axis=1).mean())
        missed = [math.comb(count - int(total), rank) / math.comb(count, rank) for total in totals]
        chance[f"recall_{rank}"] = 1 - float(np.mean(missed))
    return _percent(scores) | {f"{name}_by_chance": value for name, value in _percent(chance).items()}


def _retrieval(clip: Any, people: People, images: Tensor) -> dict[str, float]:
    """Each distinct set of facts is a query; an image is relevant when all of them are true of its person."""
    descriptions = sorted(set(people.facts))
    similarity = (encode_descriptions(clip, descriptions) @ images.T).numpy()
    relevant = np.array([[set(query) <= set(facts) for facts in people.facts] for query in descriptions])
    return {"descriptions": len(descriptions), **retrieval_scores(similarity, relevant[:, people.owners])}


def _colour(clip: Any, people: People, images: Tensor, garment: str) -> dict[str, Any]:
    """Accuracy of the best matching colour word, over people whose garment has exactly one; each person counts once."""
    words = list(COLOURS)
    known = [[word for word in words if garment + word in facts] for facts in people.facts]
    similarity = images @ encode_descriptions(clip, [[garment + word] for word in words]).T
    predicted = similarity.argmax(dim=1).numpy()
    accuracies: dict[str, list[float]] = {}  # colour -> per person
    for number, colours in enumerate(known):
        own = people.owners == number
        if len(colours) == 1 and own.any():
            accuracies.setdefault(colours[0], []).append(float((predicted[own] == words.index(colours[0])).mean()))
    everyone = [accuracy for found in accuracies.values() for accuracy in found]
    scores = {
        "accuracy": float(np.mean(everyone)),
        "balanced_accuracy": float(np.mean([np.mean(found) for found in accuracies.values()])),
        "by_chance": 1 / len(words),
        "always_the_commonest": max(map(len, accuracies.values())) / len(everyone),
    }
    each = {word: {"people": len(found), "percent": 100 * float(np.mean(found))} for word, found in accuracies.items()}
    return {"people": len(everyone), "colours": len(accuracies), **_percent(scores), "each": each}


def _chance_ap(count: int, relevant: int) -> float:
    """Expected average precision of a random ranking of `count` images, `relevant` of them relevant.

    Rank i is relevant with probability r / n, and then the i - 1 ranks above it hold (i - 1)(r - 1) / (n - 1) relevant
    images on average.
    """
    harmonic = float((1 / np.arange(1, count + 1)).sum())
    return (harmonic + (relevant - 1) * (count - harmonic) / max(count - 1, 1)) / count


def _percent(scores: dict[str, float]) -> dict[str, float]:
    return {name: 100 * value for name, value in scores.items()}
