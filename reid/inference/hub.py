"""The image tower in the Hugging Face hub's form: config.json and model.safetensors, loadable without the run."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from reid.config import ModelConfig
from reid.data.transforms import MEAN, STD
from reid.inference.encoder import PersonEncoder
from reid.model.muva import Muva, build_model
from shared.errors import DataError, DgreidError


class PersonModel(nn.Module, PyTorchModelHubMixin, library_name="dgreid", tags=["person-re-identification"]):
    """Crops (B, 3, height, width) float in 0..1 -> features (B, F), L2-normalised.

    model = PersonModel.from_pretrained("folder or repository"); `encoder()` gives the PersonEncoder.

    Args:
        model: reid.config.ModelConfig as plain data.
    """

    def __init__(self, model: dict[str, Any]) -> None:
        super().__init__()
        self._config = ModelConfig.model_validate(model)
        built = build_model(self._config, 1, seed=0, load_weights=False)
        self.image_encoder, self.neck = built.image_encoder, built.bnneck

    @classmethod
    def of(cls, encoder: PersonEncoder, config: ModelConfig) -> "PersonModel":
        found = cls(_portable(config))
        found.image_encoder.load_state_dict(encoder.model.image_encoder.state_dict())
        found.neck.load_state_dict(encoder.model.bnneck.state_dict())
        return found.eval()

    def forward(self, images: Tensor) -> Tensor:
        features = self.image_encoder((images - MEAN) / STD).features
        return F.normalize(self.neck(features), dim=1)

    def encoder(self, device: torch.device | str = "cpu") -> PersonEncoder:
        """The same model as a function of images of any form and size."""
        built = build_model(self._config, 1, seed=0, load_weights=False)
        built.image_encoder.load_state_dict(self.image_encoder.state_dict())
        built.bnneck.load_state_dict(self.neck.state_dict())
        return PersonEncoder(built, self._config.parts, device)


def load_pretrained(place: str | Path) -> Muva:
    """The model of a folder in the hub's form. Raises DataError for another folder, DgreidError for a damaged one."""
    folder = Path(place)
    if not (folder / "config.json").is_file():
        raise DataError("no model in the hub's form here", path=folder, fix="dgreid export --format hf")
    try:
        return PersonModel.from_pretrained(str(folder)).encoder().model
    except DgreidError:
        raise
    except Exception as err:  # hostile JSON or tensors raise many types
        raise DgreidError(f"not readable: {str(err)[:200]}", path=folder, fix="export the model again") from err


def _portable(config: ModelConfig) -> dict[str, Any]:
    """What builds the image tower: no path of this machine, nothing about prompts."""
    left_out = {"weights_file", "weights_sha256", "allow_download", "domain_contexts"}
    return {**config.model_dump(mode="json", exclude=left_out), "pretrained": None}
