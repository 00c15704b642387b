"""The masked attention with every way to say who may attend to whom: which one is fastest on this device?

    python tests/benchmarks/bench_masks.py [--device cpu] [--batch 16] [--rounds 7] [--threads 2] [--flex]

One attention of ViT-B/16 at 256 x 128 with three parts, its mask made from the visible patches as in every block of the
model; forward (inference), and forward and backward (training), in float32 and bfloat16. Forms take turns, and the
median of the rounds counts. --flex adds FlexAttention, which is compiled: on a GPU it is there anyway. Writes
RUNS_ROOT/bench/masks.json; tests/gpu/gpu_check.py measures the same forms.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reid.model.image_encoder import additive_mask, attention_mask
from shared.files import write_text
from shared.workspace import Workspace

HEADS, PARTS, PATCHES, DEPTH = 12, 3, 128, 64
Form = Callable[[], Tensor]


def mask_forms(
    batch: int,
    heads: int,
    parts: int,
    patches: int,
    depth: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    flex: bool = False,
) -> dict[str, Form]:
    """The attention (batch, heads, 1 + parts + patches, depth) by the name of its mask's form; queries, keys and values
    take gradients. "none" is no form but the bound of all."""
    count = 1 + parts + patches
    visible = torch.rand(batch, parts, patches, device=device) > 0.3
    shape = (batch, heads, count, depth)
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in "qkv")

    def attend(mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def additive(row: int) -> Tensor:
        """Rows that are `row` long in memory."""
        return additive_mask(attention_mask(visible), dtype, row)

    forms: dict[str, Form] = {
        "none": lambda: attend(None),
        "boolean": lambda: attend(attention_mask(visible)),
        "additive": lambda: attend(additive(count)),
        "additive, aligned rows": lambda: attend(additive(-(-count // 8) * 8)),
    }
    if flex:
        forms |= _flex_forms(q, k, v, lambda: attention_mask(visible)[:, 0])
    return forms


def _flex_forms(q: Tensor, k: Tensor, v: Tensor, allowed: Callable[[], Tensor]) -> dict[str, Form]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled, batch, count = torch.compile(flex_attention, dynamic=False), len(q), q.shape[2]

    def with_block_mask() -> Tensor:
        table = allowed()

        def rule(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return table[b, row, column]

        mask = create_block_mask(rule, batch, None, count, count, device=str(q.device))
        found: Tensor = compiled(q, k, v, block_mask=mask)
        return found

    def with_scores() -> Tensor:
        table = allowed()

        def changed(score: Tensor, b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return torch.where(table[b, row, column], score, -torch.inf)

        found: Tensor = compiled(q, k, v, score_mod=changed)
        return found

    return {"FlexAttention, block mask": with_block_mask, "FlexAttention, scores": with_scores}


def run_of(form: Form, *, training: bool) -> Callable[[], None]:
    """A run of what is timed."""

    def train() -> None:
        form().float().sum().backward()

    @torch.no_grad()
    def infer() -> None:
        form()

    return train if training else infer


def best_form(seconds: dict[str, float]) -> str:
    return min((name for name in seconds if name != "none"), key=lambda name: seconds[name])


def measure(options: argparse.Namespace, dtype: torch.dtype, training: bool) -> dict[str, Any]:
    device = torch.device(options.device)
    forms = mask_forms(options.batch, HEADS, PARTS, PATCHES, DEPTH, device, dtype, flex=options.flex)
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(options.rounds + 2):
        for name, form in forms.items():
            once, started = run_of(form, training=training), time.perf_counter()
            for _ in range(5):
                once()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number > 1:
                taken[name].append((time.perf_counter() - started) / 5)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    milliseconds = {name: round(1e3 * value, 3) for name, value in seconds.items()}
    return {"milliseconds": milliseconds, "best": best_form(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--flex", action="store_true")
    options = parser.parse_args()
    options.flex |= options.device == "cuda"
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {"device": options.device, "machine": platform.machine(), "torch": torch.__version__}
    for dtype in (torch.float32, torch.bfloat16):
        for training in (False, True):
            name = f"{'training' if training else 'inference'} {str(dtype).removeprefix('torch.')}"
            figures[name] = measure(options, dtype, training)
            print(f"{name}: best {figures[name]['best']}  {json.dumps(figures[name]['milliseconds'])}", flush=True)
    write_text(Workspace.from_environment().runs_root / "bench" / "masks.json", json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
