"""Batches of P identities x K images: the plan of one epoch, the same for the same seed and epoch."""

import random
from collections.abc import Sequence


class IdentityBatches:
    """P x K batches as in Sec. 5 of the method, planned per epoch, with their exact number.

    Each epoch the images of an identity are shuffled and cut into groups of K: an identity with fewer than K images
    is filled up by drawing with replacement, a remainder below K is left out until another epoch shuffles it in.
    A batch takes one group of each of P distinct identities, while at least P identities have groups left.
    With fewer than P identities a batch holds all of them (P is reduced; `note` says so).

    Args:
        labels: identity label of every image, any integers; at least one image.
        identities_per_batch: P.
        images_per_identity: K.
        seed: of all draws, together with the epoch.
    """

    def __init__(
        self, labels: Sequence[int], *, identities_per_batch: int, images_per_identity: int, seed: int
    ) -> None:
        if not len(labels):
            raise ValueError("no images to draw batches from")
        self._images: dict[int, list[int]] = {}
        for index, label in enumerate(labels):
            self._images.setdefault(int(label), []).append(index)
        self.identities = min(identities_per_batch, len(self._images))
        self.images_per_identity = images_per_identity
        self.note = (
            f"only {self.identities} identities for batches of {identities_per_batch}: every batch holds them all"
            if self.identities < identities_per_batch
            else ""
        )
        self._seed = seed

    def epoch(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch, each P * K image indices, those of one identity side by side; never empty."""
        rng = random.Random(f"{self._seed}/{epoch}")
        groups = {label: self._groups(images, rng) for label, images in self._images.items()}
        batches = []
        while len(groups) >= self.identities:
            batch = []
            for label in rng.sample(sorted(groups), self.identities):
                batch += groups[label].pop()
                if not groups[label]:
                    del groups[label]
            batches.append(batch)
        return batches

    def _groups(self, images: list[int], rng: random.Random) -> list[list[int]]:
        size = self.images_per_identity
        if len(images) < size:
            return [rng.choices(images, k=size)]
        shuffled = rng.sample(images, len(images))
        return [shuffled[start : start + size] for start in range(0, len(images) - size + 1, size)]
