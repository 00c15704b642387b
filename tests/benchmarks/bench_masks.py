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
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reid.model.image_encoder import additive_mask, attention_mask
from reid.training.mask_form import Form, mask_forms, random_attention, seconds_of
from shared.files import write_text
from shared.workspace import Workspace

HEADS, PARTS, PATCHES, DEPTH = 12, 3, 128, 64


def all_forms(
    shape: tuple[int, int, int, int], parts: int, device: torch.device, dtype: torch.dtype, *, flex: bool = False
) -> dict[str, Form]:
    """The attention (batch, heads, 1 + parts + patches, depth) by its mask's form; "none" is the bound of all."""
    q, k, v, visible = random_attention(shape, parts, device, dtype)

    def additive(row: int) -> Form:
        """Rows that are `row` long in memory."""
        return lambda: F.scaled_dot_product_attention(
            q, k, v, attn_mask=additive_mask(attention_mask(visible), dtype, row)
        )

    forms: dict[str, Form] = {
        "none": lambda: F.scaled_dot_product_attention(q, k, v),
        "boolean": mask_forms(q, k, v, visible)["boolean"],
        "additive": additive(shape[2]),
        "additive, aligned rows": additive(-(-shape[2] // 8) * 8),
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


def best_form(seconds: dict[str, float]) -> str:
    return min((name for name in seconds if name != "none"), key=lambda name: seconds[name])


def measure(options: argparse.Namespace, dtype: torch.dtype, training: bool) -> dict[str, Any]:
    device, shape = torch.device(options.device), (options.batch, HEADS, 1 + PARTS + PATCHES, DEPTH)
    forms = all_forms(shape, PARTS, device, dtype, flex=options.flex)
    seconds = seconds_of(forms, device, training=training, rounds=options.rounds)
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
