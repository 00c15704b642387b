"""Batches of P identities x K images: the plan of one epoch, the same for the same seed and epoch."""

import random
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class IdentityBatches:
    """P x K batches as in Sec. 5 of the method, planned per epoch, with their exact number.

    Each epoch the images of an identity are shuffled and cut into groups of K: an identity with fewer than K images
    is filled up by drawing with replacement, a remainder below K is left out until another epoch shuffles it in.
    A batch takes one group of each of P distinct identities, while at least P identities have groups left.
    With fewer than P identities a batch holds all of them (P is reduced; `note` says so).

    With `domains` every batch has equally many identities of each domain (one more or less where P is not divisible,
    in turn; all of a domain that has fewer). There are as many batches per epoch as without; a domain that
    runs out of groups before is reshuffled and split again.

    Args:
        labels: identity label of every image, any integers; at least one image.
        identities_per_batch: P.
        images_per_identity: K.
        seed: of all draws, together with the epoch.
        domains: the domain of every image, to balance them; all images of an identity have the same.
    """

    def __init__(
        self,
        labels: Sequence[int] | NDArray[np.int64],
        *,
        identities_per_batch: int,
        images_per_identity: int,
        seed: int,
        domains: Sequence[str] | None = None,
    ) -> None:
        if not len(labels):
            raise ValueError("no images to draw batches from")
        numbers = np.asarray(labels, np.int64)
        order = np.argsort(numbers, kind="stable")
        present, starts = np.unique(numbers[order], return_index=True)
        # identity -> its images in order, each a stretch of one array
        self._images: dict[int, NDArray[np.int64]] = dict(
            zip(present.tolist(), np.split(order, starts[1:]), strict=True)
        )
        # an epoch's draws are made in the order in which identities first occur
        firsts = np.array([images[0] for images in self._images.values()])
        self._in_first_use = present[np.argsort(firsts)].tolist()
        self.identities = min(identities_per_batch, len(self._images))
        self.images_per_identity = images_per_identity
        self.note = (
            f"only {self.identities} identities for batches of {identities_per_batch}: every batch holds them all"
            if self.identities < identities_per_batch
            else ""
        )
        self._seed = seed
        self._members: dict[str, list[int]] = {}  # domain -> its identities
        if domains is not None:
            for label, images in self._images.items():
                self._members.setdefault(domains[int(images[0])], []).append(label)

    def epoch(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch, each P * K image indices, those of one identity side by side; never empty."""
        rng = random.Random(f"{self._seed}/{epoch}")
        plan = self._plan(rng)
        return self._balanced(len(plan), rng) if self._members else plan

    def _plan(self, rng: random.Random) -> list[list[int]]:
        groups = {label: self._groups(self._images[label], rng) for label in self._in_first_use}
        left = sorted(groups)
        batches = []
        while len(left) >= self.identities:
            batch: list[int] = []
            for label in rng.sample(left, self.identities):
                batch += groups[label].pop().tolist()
                if not groups[label]:
                    del left[bisect_left(left, label)]
            batches.append(batch)
        return batches

    def _balanced(self, batch_count: int, rng: random.Random) -> list[list[int]]:
        left: dict[int, list[NDArray[np.int64]]] = {}  # identity -> its groups
        batches = []
        for number in range(batch_count):
            batch: list[int] = []
            for domain, count in self._identities_per_domain(number).items():
                members = self._members[domain]
                ready = [label for label in members if left.get(label)]
                if len(ready) < count:  # the remaining groups come first, the others from a new round
                    fresh = [label for label in members if label not in ready]
                    left.update({label: self._groups(self._images[label], rng) for label in fresh})
                    chosen = ready + rng.sample(fresh, count - len(ready))
                else:
                    chosen = rng.sample(ready, count)
                for label in chosen:
                    batch += left[label].pop().tolist()
            batches.append(batch)
        return batches

    def _identities_per_domain(self, number: int) -> dict[str, int]:
        """How many identities of each domain batch `number` takes: one each in turn up to P."""
        domains = sorted(self._members)
        domains = domains[number % len(domains) :] + domains[: number % len(domains)]
        counts = dict.fromkeys(domains, 0)
        while sum(counts.values()) < self.identities:
            for domain in domains:
                if counts[domain] < len(self._members[domain]) and sum(counts.values()) < self.identities:
                    counts[domain] += 1
        return counts

    def _groups(self, images: NDArray[np.int64], rng: random.Random) -> list[NDArray[np.int64]]:
        size, count = self.images_per_identity, len(images)
        if count < size:
            return [images[rng.choices(range(count), k=size)]]
        shuffled = images[rng.sample(range(count), count)]
        return [shuffled[start : start + size] for start in range(0, count - size + 1, size)]
