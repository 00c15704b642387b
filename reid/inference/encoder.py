"""`PersonEncoder`: the trained model of a run as a function from images to features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from reid.data.decoding import load_pixels, resized_pixels
from reid.data.transforms import TESTING, normalised
from reid.inference.devices import make_fabric
from reid.inference.trained import model_hash, read_trained_run
from reid.model.muva import Muva
from shared.errors import UsageError
from shared.images import UnreadableImageError, to_rgb
from shared.object_storage import ObjectPath
from shared.workspace import Workspace

OneImage = str | Path | ObjectPath | Image.Image | NDArray[np.uint8] | Tensor
Images = OneImage | Sequence[OneImage]


@dataclass(frozen=True)
class Embeddings:
    """What the model computes of N images; E is CLIP's joint width, R the number of parts, F = (1 + R) * E.

    features: float32 [N, F], L2-normalised; what images are compared by.
    part_features: float32 [N, 1 + R, E], the whole person first, then the parts in the order of `parts`; the features
        cut into granularities, each L2-normalised by itself (0 where a slice is 0).
    visibility: float32 [N, R] in 0..1, the fraction of the patches in which the part is predicted to be visible; 0
        means that the part is predicted to be visible nowhere. R is 0 for a model without parts.
    parts: names of the R parts.
    """

    features: NDArray[np.float32]
    part_features: NDArray[np.float32]
    visibility: NDArray[np.float32]
    parts: tuple[str, ...]


class PersonEncoder:
    """A trained model in eval mode and float32, with the preprocessing of the evaluation.

        encoder = reid.PersonEncoder.load("runs/train/demo")
        features = encoder(["a.jpg", "b.jpg"])    # [2, F]
        encoder.compare("a.jpg", "b.jpg")         # cosine similarity

    An image is a crop of one person: a path, a PIL image, uint8 RGB as an array [H, W, 3], or as a tensor [3, H, W]; a
    list of these, an array [N, H, W, 3] or a tensor [N, 3, H, W] is several. Crops may be of any size.
    """

    def __init__(self, model: Muva, parts: Sequence[str], device: torch.device | str = "cpu") -> None:
        """model: as `load` builds it. parts: names of its parts."""
        self.device = torch.device(device)
        self.parts = tuple(parts)
        self.model = model.to(self.device).float().eval().requires_grad_(False)

    @classmethod
    def load(cls, run: str | Path, *, device: str = "auto") -> "PersonEncoder":
        """The model that a training run is scored with; neither its training data nor CLIP's weights file is needed.

        Args:
            run: the run folder, or the name of a run under RUNS_ROOT/train.
            device: "auto" (a GPU if there is one), "cpu", "cuda" or "mps".
        Raises:
            DataError: no such run, or it has not finished an epoch of stage 2.
            ConfigError: the device is unavailable, or the run's configuration is damaged.
            DgreidError: the checkpoint is damaged.
        """
        folder = Path(run)
        if not folder.is_dir() and len(folder.parts) == 1:
            folder = Workspace.from_environment().training_run(folder.name)
        trained = read_trained_run(folder)
        return cls(trained.model(), trained.config.model.parts, make_fabric(device, "32-true").device)

    @property
    def feature_dim(self) -> int:
        """F, the length of a feature."""
        return int(self.model.feature_dim)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that images are resized to."""
        return self.model.grid.image_height, self.model.grid.image_width

    @cached_property
    def model_hash(self) -> str:
        """Names the function from images to features: features of different hashes must not be compared."""
        return model_hash(self.model)

    def __call__(self, images: Images, *, batch_size: int = 64) -> NDArray[np.float32]:
        """Features float32 [N, F], L2-normalised; N is 1 for a single image. Arguments and errors as for `embed`."""
        return self.embed(images, batch_size=batch_size).features

    def embed(self, images: Images, *, batch_size: int = 64) -> Embeddings:
        """Features of the images, of their parts, and the predicted visibility of the parts.

        Args:
            images: one image or several, see the class.
            batch_size: images per forward pass.
        Raises:
            UnreadableImageError: a file is missing, damaged or no image; names it.
            UsageError: an argument is of another type, shape or dtype.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} is below 1", fix="give a positive number, e.g. batch_size=64")
        given = _listed(images)
        parts, width = 1 + len(self.parts), self.feature_dim
        features, visibility = [np.empty((0, width), np.float32)], [np.empty((0, parts - 1), np.float32)]
        for start in range(0, len(given), batch_size):
            batch = torch.stack([self.preprocessed(one) for one in given[start : start + batch_size]])
            for rows, found in zip((features, visibility), self.encode(batch), strict=True):
                rows.append(found)
        joined = np.concatenate(features)
        blocks = joined.reshape(len(given), parts, width // parts)
        return Embeddings(joined, _normalised_rows(blocks), np.concatenate(visibility), self.parts)

    def similarity(
        self, first: Images | NDArray[np.float32], second: Images | NDArray[np.float32], *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Cosine similarity [N, M] in -1..1 of N and M images, or of features [N, F] that were computed before.

        Larger means more alike. It is not the probability that two images show one person: which value separates people
        depends on the model and the cameras, so set a threshold on pairs of your own whose identities are known.
        """
        rows, columns = (self._features(side, batch_size) for side in (first, second))
        cosines: NDArray[np.float32] = np.clip(rows @ columns.T, -1, 1)
        return cosines

    def compare(self, first: OneImage, second: OneImage) -> float:
        """Cosine similarity in -1..1 of two images; not a probability, see `similarity`. Raises as `embed`."""
        found = self.similarity(first, second)
        if found.shape != (1, 1):
            raise UsageError(f"compare takes two images, not {found.shape[0]} and {found.shape[1]}", fix="similarity()")
        return float(found[0, 0])

    def _features(self, side: Images | NDArray[np.float32], batch_size: int) -> NDArray[np.float32]:
        """L2-normalised rows of images, or of features that were computed before."""
        given: Any = side
        if not (isinstance(given, np.ndarray) and given.ndim == 2 and given.dtype == np.float32):
            return self(given, batch_size=batch_size)
        if given.shape[1] != self.feature_dim:
            raise UsageError(
                f"features of length {given.shape[1]}, this model's have {self.feature_dim}",
                fix="compare features of one model only",
            )
        return _normalised_rows(given)

    def preprocessed(self, image: OneImage) -> Tensor:
        """One image, resized as test images are: uint8 [3, height, width]. Raises as `embed`."""
        return resized_pixels(_pixels(image), self.image_size, TESTING)

    def encode(self, images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One batch of `preprocessed` images, uint8 [B, 3, height, width] -> features [B, F], visibility [B, R]."""
        features, masks = self._forward(images)
        return features, masks.mean(axis=2, dtype=np.float32)

    def part_masks(self, images: Images, *, batch_size: int = 64) -> NDArray[np.bool_]:
        """Which patches show which part: bool [N, R, rows, columns]. Arguments and errors as for `embed`."""
        grid, given = self.model.grid, _listed(images)
        found = [np.zeros((0, len(self.parts), grid.count), bool)]
        for start in range(0, len(given), batch_size):
            batch = torch.stack([self.preprocessed(one) for one in given[start : start + batch_size]])
            found.append(self._forward(batch)[1])
        masks: NDArray[np.bool_] = np.concatenate(found).reshape(len(given), -1, grid.rows, grid.columns)
        return masks

    @torch.inference_mode()
    def _forward(self, images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """uint8 [B, 3, height, width] -> features [B, F], visible patches bool [B, R, L]."""
        features, mask_logits = self.model.embed(normalised(images.to(self.device)))
        if mask_logits is None:
            return features.cpu().numpy(), np.zeros((len(images), 0, self.model.grid.count), bool)
        visible = self.model.image_encoder.visible_patches(mask_logits[-1])  # (B, R, L)
        return features.cpu().numpy(), visible.cpu().numpy()


def _normalised_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The last axis scaled to length 1; zeros stay zeros."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    found: NDArray[np.float32] = rows / np.maximum(norms, np.finfo(np.float32).tiny)
    return found


def _listed(images: Images) -> list[OneImage]:
    """Several images as a list. Raises UsageError for another type."""
    if isinstance(images, str | Path | ObjectPath | Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Sequence | Iterator):
        return list(images)
    raise _unsupported(images)


def _pixels(image: OneImage) -> Tensor:
    """One image as uint8 RGB [3, H, W]."""
    if isinstance(image, str):
        image = Path(image)
    if isinstance(image, Path | ObjectPath):
        return load_pixels(cast(Path, image))
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):  # Pillow would clip them to white or black
            raise UsageError(f"a PIL image of mode {image.mode}", fix="scale it to 8 bits per channel first")
        try:
            return torch.from_numpy(np.array(to_rgb(image, None))).permute(2, 0, 1)
        except Exception as err:  # a lazily read file may fail only now, with any type
            raise UnreadableImageError(f"{type(err).__name__}: {err}"[:200], getattr(image, "filename", None)) from err
    if isinstance(image, np.ndarray):
        _check(image.shape, str(image.dtype), image.shape[-1:] == (3,), "an array [H, W, 3]")
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if isinstance(image, Tensor):
        _check(tuple(image.shape), str(image.dtype), image.shape[:1] == (3,), "a tensor [3, H, W]")
        return image.detach().cpu()
    raise _unsupported(image)


def _check(shape: tuple[int, ...], dtype: str, channels: bool, wanted: str) -> None:
    if len(shape) != 3 or not channels or 0 in shape or dtype.removeprefix("torch.") != "uint8":
        raise UsageError(
            f"an image of shape {list(shape)} and type {dtype}", fix=f"give uint8 RGB in 0..255 as {wanted}"
        )


def _unsupported(value: Any) -> UsageError:
    return UsageError(
        f"cannot read an image from {type(value).__name__}", fix="give a path, a PIL image, an array or a tensor"
    )
