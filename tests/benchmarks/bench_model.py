"""Our model against plain open_clip, side by side in one run: inference, training step, texts, memory.

    python tests/benchmarks/bench_model.py [--rounds 9] [--batch 16] [--only step memory] [--modes eager] ...

Weights are random: they do not change the time. Sides take turns, and each side counts with the better of eager and
compiled, by its median over the rounds. RUNS_ROOT/bench/model.json gets the ratios ours / plain: the median over the
rounds of the ratio within a round, which a machine whose speed changes from minute to minute moves less than a ratio of
two medians; and under "medians" the two medians with the mode they were reached in (seconds; MiB for memory_ratio) and
the number of rounds. Both sides of a ratio are always of the same run; --only replaces the ratios it measures and keeps
the others when they are of the same model, sizes, threads and torch.
"""

import argparse
import copy
import ctypes
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.config import ModelConfig, Stage1Config, Stage2Config
from reid.model.muva import Muva, build_model
from reid.training.optimizer import image_optimizer, prompt_optimizer
from reid.training.steps import ImageStep, PromptStep
from shared.files import write_text
from shared.workspace import Workspace

RATIOS = ("inference", "inference_bf16", "step", "step_bf16", "text", "stage1", "memory")
M_MMAP_THRESHOLD = -3  # of malloc.h
Side = Callable[[bool], Callable[[], object]]  # compiled? -> one run of what is timed
Figures = dict[str, dict[str, list[float]]]  # side -> mode -> what every round measured


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmups", type=int, default=1, help="untimed runs of each side (compiling happens there)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--backbone", default="ViT-B-16-quickgelu")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 128], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--identities", type=int, default=751, help="of the classifier and the memory")
    parser.add_argument("--texts", type=int, default=64, help="identities whose text prototypes are computed")
    parser.add_argument("--prompts", type=int, default=16, help="identities of a stage 1 step")
    parser.add_argument("--only", nargs="+", choices=RATIOS, default=RATIOS)
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    return parser.parse_args()


def model_config(given: argparse.Namespace) -> ModelConfig:
    architecture = copy.deepcopy(open_clip.get_model_config(given.backbone))
    architecture["vision_cfg"]["image_size"] = list(given.size)  # plain CLIP at our input size
    stride = architecture["vision_cfg"]["patch_size"]
    return ModelConfig(
        backbone=given.backbone, architecture=architecture, pretrained=None, image_size=given.size, stride=stride
    )


def plain_clip(given: argparse.Namespace) -> Any:
    return open_clip.CLIP(**model_config(given).architecture)


def pixels(given: argparse.Namespace) -> Tensor:
    return torch.randint(0, 256, (given.batch, 3, *given.size), dtype=torch.uint8)


def half(used: bool) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if used else nullcontext()


def inference_sides(given: argparse.Namespace, bf16: bool) -> tuple[Side, Side]:
    model = build_model(model_config(given), 2, seed=0).eval()
    visual, images = plain_clip(given).visual.eval(), pixels(given) / 127.5 - 1

    def side(network: nn.Module) -> Side:
        def make(compiled: bool) -> Callable[[], object]:
            run = torch.compile(network) if compiled else network

            @torch.no_grad()
            def once() -> object:
                with half(bf16):
                    return run(images)

            return once

        return make

    return side(model.image_encoder), side(visual)


def our_step(given: argparse.Namespace, bf16: bool) -> Side:
    model = build_model(model_config(given), given.identities, seed=0).train()
    optimizer = image_optimizer(model, Stage2Config())
    step = ImageStep(model, torch.randn(given.identities, model.feature_dim) * 0.1, Stage2Config())
    step.memory.rows.copy_(F.normalize(torch.randn(given.identities, model.feature_dim), dim=1))
    labels = torch.arange(given.batch) // 4 % given.identities
    images, visible = pixels(given), torch.rand(given.batch, model.num_parts, model.grid.count) > 0.7
    encoder = model.image_encoder

    def make(compiled: bool) -> Callable[[], object]:
        eager, fast = encoder.forward, torch.compile(encoder.forward)

        def once() -> object:
            encoder.forward = fast if compiled else eager
            with half(bf16):
                total, _ = step(images, labels, visible)
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
            encoder.forward = eager
            return total.item()

        return once

    return make


def plain_step(given: argparse.Namespace, bf16: bool, *, optimise: bool = True) -> Side:
    visual, images = plain_clip(given).visual.train(), pixels(given) / 127.5 - 1
    optimizer = torch.optim.Adam(visual.parameters(), lr=5e-6, weight_decay=1e-4)

    def make(compiled: bool) -> Callable[[], object]:
        run = torch.compile(visual) if compiled else visual

        def once() -> object:
            with half(bf16):
                loss = run(images).float().square().mean()
            loss.backward()
            if optimise:
                optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return once

    return make


def text_at_full_length(model: Muva, identities: Tensor) -> Tensor:
    """The same features with all positions of the context computed, as plain CLIP does."""
    encoder = model.text_encoder
    embedded, ends = model.prompts(identities)
    length = encoder.positional_embedding.shape[0]
    embedded, ends = F.pad(embedded.flatten(0, 1), (0, 0, 0, length - embedded.shape[2])), ends.flatten()
    mask = torch.full((length, length), -torch.inf).triu(1)
    hidden = embedded + encoder.positional_embedding
    for block in encoder.blocks:
        hidden = block(hidden, attn_mask=mask)
    return (encoder.ln_final(hidden)[torch.arange(len(ends)), ends] @ encoder.text_projection).view(len(identities), -1)


def text_sides(given: argparse.Namespace) -> tuple[Side, Side]:
    model, identities = build_model(model_config(given), given.texts, seed=0).eval(), torch.arange(given.texts)

    def side(encode: Callable[[Tensor], Tensor]) -> Side:
        def make(compiled: bool) -> Callable[[], object]:
            return torch.no_grad()(partial(torch.compile(encode) if compiled else encode, identities))

        return make

    return side(model.encode_text), side(lambda these: text_at_full_length(model, these))


def stage1_sides(given: argparse.Namespace) -> tuple[Side, Side]:
    def side(full: bool) -> Side:
        model = build_model(model_config(given), given.prompts, seed=0)
        optimizer = prompt_optimizer(model, Stage1Config())
        if full:
            model.text_encoder.requires_grad_(True)
            model.encode_text = lambda these: text_at_full_length(model, these)  # type: ignore[method-assign]
        step = PromptStep(model, F.normalize(torch.randn(given.prompts, model.feature_dim), dim=1))
        labels = torch.arange(given.prompts).repeat_interleave(4)

        def make(compiled: bool) -> Callable[[], object]:
            eager, fast = model.encode_text, torch.compile(model.encode_text)

            def once() -> object:
                model.encode_text = fast if compiled else eager  # type: ignore[method-assign]
                loss = step(labels)
                loss.backward()
                optimizer.step()
                model.zero_grad()
                model.encode_text = eager  # type: ignore[method-assign]
                return loss.item()

            return once

        return make

    return side(False), side(True)


def seconds(sides: tuple[Side, Side], given: argparse.Namespace) -> Figures:
    """Side -> mode -> seconds of every round; a round runs each side in each mode once."""
    runs = {
        (name, mode): make(mode == "compiled")
        for name, make in zip(("ours", "plain"), sides, strict=True)
        for mode in given.modes
    }
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for number in range(given.warmups + given.rounds):
        for key, run in runs.items():
            started = time.perf_counter()
            run()
            if number >= given.warmups:
                taken[key].append(time.perf_counter() - started)
    return {name: {mode: taken[name, mode] for mode in given.modes} for name in ("ours", "plain")}


def peak_mib(name: str, compiled: bool, given: argparse.Namespace, found: Any) -> None:
    """Peak resident memory of a step above what is resident before it, in a process of its own (Linux, glibc)."""
    torch.set_num_threads(given.threads)
    # every tensor above 64 KiB has pages of its own and gives them back: what is measured is tensors, not the holes
    # that the allocator happens to leave between them
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    once = (our_step(given, False) if name == "ours" else plain_step(given, False, optimise=False))(compiled)
    once()  # compiles; optimiser states and buffers that stay
    for _ in range(3):
        ctypes.CDLL(None).malloc_trim(0)  # glibc: what the step before has freed does not count as resident
        before = _status_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # start a new high-water mark
        once()
        found.put(_status_mib("VmHWM") - before)


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def memory(given: argparse.Namespace) -> Figures:
    context = multiprocessing.get_context("spawn")
    peaks: Figures = {"ours": {}, "plain": {}}
    for name, found_in in peaks.items():
        for mode in given.modes:
            found = context.Queue()
            process = context.Process(target=peak_mib, args=(name, mode == "compiled", given, found))
            process.start()
            found_in[mode] = [found.get(timeout=600) for _ in range(3)]
            process.join()
    return peaks


def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    measures: dict[str, Callable[[], Figures]] = {
        "inference": lambda: seconds(inference_sides(given, bf16=False), given),
        "inference_bf16": lambda: seconds(inference_sides(given, bf16=True), given),
        "step": lambda: seconds((our_step(given, bf16=False), plain_step(given, bf16=False)), given),
        "step_bf16": lambda: seconds((our_step(given, bf16=True), plain_step(given, bf16=True)), given),
        "text": lambda: seconds(text_sides(given), given),
        "stage1": lambda: seconds(stage1_sides(given), given),
        "memory": lambda: memory(given),
    }
    result: dict[str, Any] = {"medians": {}}
    for name in given.only:
        torch._dynamo.reset()
        figures = measures[name]()
        medians = {
            side: {mode: statistics.median(values) for mode, values in of_side.items()}
            for side, of_side in figures.items()
        }
        best = {side: min(of_side, key=lambda mode: of_side[mode]) for side, of_side in medians.items()}
        pairs = zip(figures["ours"][best["ours"]], figures["plain"][best["plain"]], strict=True)
        result[f"{name}_ratio"] = round(statistics.median(ours / plain for ours, plain in pairs), 4)
        result["medians"][f"{name}_ratio"] = {side: round(medians[side][mode], 4) for side, mode in best.items()} | {
            f"{side}_mode": mode for side, mode in best.items()
        }
        result["medians"][f"{name}_ratio"] |= {"rounds": given.rounds, "modes_tried": given.modes}
        print(f"{name}_ratio {result[f'{name}_ratio']}  {medians}", flush=True)
        write_merged(result, given)


def write_merged(result: dict[str, Any], given: argparse.Namespace) -> None:
    """The new figures, and those of earlier runs under the same conditions."""
    named = ("threads", "batch", "backbone", "size", "identities", "texts", "prompts")
    conditions = {name: getattr(given, name) for name in named}
    conditions |= {"torch": torch.__version__, "machine": platform.machine(), "cores": os.cpu_count()}
    path = Workspace.from_environment().runs_root / "bench" / "model.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    if before.get("conditions") != conditions:
        before = {}
    merged = {**before, **result, "medians": {**before.get("medians", {}), **result["medians"]}}
    write_text(path, json.dumps({**merged, "conditions": conditions}, indent=2) + "\n")


if __name__ == "__main__":
    main()
