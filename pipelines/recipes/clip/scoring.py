"""What a captioned CLIP can do with people it never saw: find them by a description, name the colour of a garment."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.recipes.clip.captions import COLOURS, sentence
from pipelines.recipes.clip.people import People
from pipelines.recipes.clip.words import tokenized
from reid.data.transforms import normalised

SENTENCES = 8  # per description or colour; their mean is compared
PICTURES = 8  # at most, of one person: tracklets are near-duplicates
RANKS = (1, 5, 10)
GARMENTS = {"upper": "upperBody", "lower": "lowerBody"}
_BATCH = 256


def score_people(clip: Any, people: People) -> dict[str, Any]:
    """Both scores on these people, in percent, with what chance would give beside each.

    clip: an open_clip model in eval mode; people: held out from its training.
    """
    people = fewer_pictures(people)
    images = encoded_images(clip, people.pixels)
    return {
        "people": len(people.names),
        "pictures": len(people.pixels),
        "retrieval": _retrieval(clip, people, images),
        **{f"{name}_colour": _colour(clip, people, images, about) for name, about in GARMENTS.items()},
    }


def fewer_pictures(people: People, most: int = PICTURES) -> People:
    """At most `most` pictures of every person, evenly spaced over those there are."""
    kept: list[int] = []
    for number in range(len(people.names)):
        own = np.flatnonzero(people.owners == number)
        kept += own[np.unique(np.linspace(0, len(own) - 1, most).round().astype(int))].tolist() if len(own) else []
    return People(people.pixels[kept], people.owners[kept], people.names, people.facts)


@torch.no_grad()
def encoded_images(clip: Any, pixels: np.ndarray) -> Tensor:
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
def encoded_facts(clip: Any, descriptions: Iterable[Sequence[str]]) -> Tensor:
    """Facts of n descriptions -> [n, E]: the mean of the features of several sentences that say them, normalised."""
    rng = np.random.default_rng(0)
    features = []
    for facts in descriptions:
        said = tokenized([sentence(facts, rng) for _ in range(SENTENCES)], clip.context_length)
        features.append(clip.encode_text(said, normalize=True).mean(dim=0))
    return F.normalize(torch.stack(features), dim=1)


def retrieval_scores(similarity: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Recall at each rank and mAP in percent, and what a random order would give.

    similarity: [Q, N] of queries and pictures; right: bool [Q, N], at least one true in every row.
    """
    order = np.argsort(-similarity, axis=1, kind="stable")
    hits = np.take_along_axis(right, order, axis=1)
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
    """Everybody is described by all that is known of them; a picture is right when all of it is true of its person."""
    descriptions = sorted(set(people.facts))
    similarity = (encoded_facts(clip, descriptions) @ images.T).numpy()
    true = np.array([[set(said) <= set(facts) for facts in people.facts] for said in descriptions])
    return {"descriptions": len(descriptions), **retrieval_scores(similarity, true[:, people.owners])}


def _colour(clip: Any, people: People, images: Tensor, about: str) -> dict[str, Any]:
    """Which of all colour words fits best, for people whose garment has exactly one; every person counts the same."""
    words = list(COLOURS)
    known = [[word for word in words if about + word in facts] for facts in people.facts]
    similarity = images @ encoded_facts(clip, [[about + word] for word in words]).T
    named = similarity.argmax(dim=1).numpy()
    shares: dict[str, list[float]] = {}
    for number, colours in enumerate(known):
        own = people.owners == number
        if len(colours) == 1 and own.any():
            shares.setdefault(colours[0], []).append(float((named[own] == words.index(colours[0])).mean()))
    everyone = [share for found in shares.values() for share in found]
    scores = {
        "accuracy": float(np.mean(everyone)),
        "balanced_accuracy": float(np.mean([np.mean(found) for found in shares.values()])),
        "by_chance": 1 / len(words),
        "always_the_commonest": max(map(len, shares.values())) / len(everyone),
    }
    each = {word: {"people": len(found), "percent": 100 * float(np.mean(found))} for word, found in shares.items()}
    return {"people": len(everyone), "colours": len(shares), **_percent(scores), "each": each}


def _chance_ap(count: int, right: int) -> float:
    """Expected average precision of a random order of `count` pictures, `right` of them right: position i is right
    with chance r / n, and then i - 1 others hold (i - 1)(r - 1) / (n - 1) right ones on average."""
    harmonic = float((1 / np.arange(1, count + 1)).sum())
    return (harmonic + (right - 1) * (count - harmonic) / max(count - 1, 1)) / count


def _percent(scores: dict[str, float]) -> dict[str, float]:
    return {name: 100 * value for name, value in scores.items()}
