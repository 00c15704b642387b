"""Which form of the attention mask a device is faster with: boolean or additive, found by trying both once."""

import logging
import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from reid.model.image_encoder import MaskedEncoder, additive_mask, attention_mask

log = logging.getLogger(__name__)

RUNS = 5  # of a form when it is its turn
Form = Callable[[], Tensor]


def choose_mask_form(encoder: MaskedEncoder, fabric: Fabric, batch_size: int, *, compiled: bool = False) -> None:
    """Settle `encoder.additive` for a training whose configuration leaves it open (model.attention_mask=auto).

    On a CUDA device one attention of the encoder's size is timed forward and backward with both forms, in the precision
    of the training, and the faster form is taken; several processes take that of the first. Elsewhere it stays as it
    is: on the CPU the result of a training depends on no clock.

    Args:
        batch_size: images per step of a process.
        compiled: time what torch.compile makes of the attention.
    """
    if fabric.device.type != "cuda" or encoder.soft_gate is not None or not encoder.num_parts:
        return
    with fabric.autocast():
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else encoder.proj.dtype
    heads, (count, width) = encoder.blocks[0].attn.num_heads, encoder.positional_embedding.shape
    shape = (batch_size, heads, count, width // heads)
    forms = mask_forms(*random_attention(shape, encoder.num_parts, fabric.device, dtype))
    if compiled:
        forms = {name: torch.compile(form, dynamic=False) for name, form in forms.items()}
    seconds = seconds_of(forms, fabric.device, training=True)
    encoder.additive = bool(fabric.broadcast(seconds["additive"] < seconds["boolean"]))
    log.info(
        "attention masks: %s (boolean %.3f ms, additive %.3f ms)",
        "additive" if encoder.additive else "boolean",
        1e3 * seconds["boolean"],
        1e3 * seconds["additive"],
    )


def random_attention(
    shape: tuple[int, int, int, int], parts: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values of a shape, which take gradients, and the visible patches (batch, parts, patches) bool.

    Args:
        shape: (batch, heads, tokens, width of a head); the tokens are 1 + parts + patches.
    """
    visible = torch.rand(shape[0], parts, shape[2] - 1 - parts, device=device) > 0.3
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in "qkv")
    return q, k, v, visible


def mask_forms(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> dict[str, Form]:
    """The masked attention by the form of its mask, which is made anew in each run, as in every block of the model."""

    def boolean() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask(visible))

    def additive() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=additive_mask(attention_mask(visible), q.dtype))

    return {"boolean": boolean, "additive": additive}


def seconds_of(forms: Mapping[str, Form], device: torch.device, *, training: bool, rounds: int = 7) -> dict[str, float]:
    """Median seconds of a run of each form, forward or, for training, forward and backward; the forms take turns."""
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 2):
        for name, form in forms.items():
            run = run_of(form, training=training)
            wait_for(device)
            started = time.perf_counter()
            for _ in range(RUNS):
                run()
            wait_for(device)
            if number > 1:  # compiled and warm
                taken[name].append((time.perf_counter() - started) / RUNS)
    return {name: statistics.median(values) for name, values in taken.items()}


def run_of(form: Form, *, training: bool) -> Callable[[], None]:
    """What is timed of a form: forward, or forward and backward."""

    def train() -> None:
        form().float().sum().backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def infer() -> None:
        form()

    return train if training else infer


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
