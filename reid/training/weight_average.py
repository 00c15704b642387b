"""Exponential moving average of the weights in training, which is smoother than their last value."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from reid.model.muva import Muva


class WeightAverage:
    """Follows what trains and the neck's running statistics: average <- decay * average + (1 - decay) * value.

    Args:
        model: its values now are the first average.
        decay: in (0, 1).
    """

    def __init__(self, model: Muva, decay: float) -> None:
        self.decay = decay
        self.values = {name: tensor.detach().clone() for name, tensor in _followed(model).items()}

    @torch.no_grad()
    def update(self, model: Muva) -> None:
        """Take in the model's values, after an optimiser step."""
        for name, tensor in _followed(model).items():
            self.values[name].lerp_(tensor, 1 - self.decay)

    def load(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in values.items():
            self.values[name].copy_(tensor)

    @contextmanager
    def applied(self, model: Muva) -> Iterator[None]:
        """The model with the averaged values; its own are put back afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in _followed(model).items()}
        _set(model, self.values)
        try:
            yield
        finally:
            _set(model, own)


def _followed(model: Muva) -> dict[str, Tensor]:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    neck = model.bnneck
    assert neck.running_mean is not None and neck.running_var is not None
    return {**trained, "bnneck.running_mean": neck.running_mean, "bnneck.running_var": neck.running_var}


@torch.no_grad()
def _set(model: Muva, values: Mapping[str, Tensor]) -> None:
    for name, tensor in _followed(model).items():
        tensor.copy_(values[name])
