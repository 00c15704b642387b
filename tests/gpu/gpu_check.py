"""What only a GPU can show, in at most ten minutes on one: equal results, speed and memory against plain open_clip.

    python tests/gpu/gpu_check.py [--minutes 10] [--only equal speed loader retrieval masks more] [--device cuda]

It needs no data and no weights: models are random, crops are generated and packed. Without a GPU it runs the same at a
tiny size on the CPU, which shows that the script works and nothing else. Figures are written to
RUNS_ROOT/bench/gpu.json (or --out FILE) after every measurement; what fails or finds no time is recorded, and the rest
goes on, in a new process where a CUDA error has made this one useless. --continue leaves out what FILE has already.

On a machine without a network, carry these wheels and install them with `pip install --no-index --find-links FOLDER`:
torch torchvision open_clip_torch lightning-fabric pydantic pyyaml numpy pillow simplejpeg opencv-python-headless (with
what they need: `pip download` fetches both). pyarrow, duckdb, scipy and fastapi are not needed, except pyarrow and
duckdb by the one check of a whole training run, which is otherwise reported as not run.
"""

import argparse
import copy
import gc
import importlib.util
import json
import math
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "open_clip": "open_clip_torch",
    "lightning_fabric": "lightning-fabric",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "numpy": "numpy",
    "PIL": "pillow",
    "simplejpeg": "simplejpeg",
    "cv2": "opencv-python-headless",
}
if missing := [wheel for module, wheel in NEEDED.items() if importlib.util.find_spec(module) is None]:
    raise SystemExit(f"missing here: {' '.join(missing)}\n  fix: pip install {' '.join(missing)}")

import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from reid.config import ModelConfig, Stage2Config  # noqa: E402
from reid.data.augment import Augmentation  # noqa: E402
from reid.data.packed import PackedImages, record_type  # noqa: E402
from reid.data.part_masks import PatchGrid  # noqa: E402
from reid.data.person_images import PersonImages, in_order, load_batches  # noqa: E402
from reid.data.samplers import IdentityBatches  # noqa: E402
from reid.data.transforms import TRAINING  # noqa: E402
from reid.inference.devices import make_fabric  # noqa: E402
from reid.inference.embed import retrieval_features  # noqa: E402
from reid.metrics.retrieval import evaluate  # noqa: E402
from reid.model.muva import Muva, build_model  # noqa: E402
from reid.training.mask_form import choose_mask_form, run_of  # noqa: E402
from reid.training.optimizer import image_optimizer  # noqa: E402
from reid.training.steps import ImageStep  # noqa: E402
from tests.benchmarks.bench_masks import all_forms, best_form  # noqa: E402

TINY = {  # a CLIP that runs in milliseconds
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [48, 24], "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TOLERANCE = 1e-4  # of float32 outputs and gradients, against the largest value of each
STEPS = 12  # the first ones in float16 may overflow and are skipped
LEARNING = Stage2Config(lr=1e-4)


class Setting:
    """Sizes of what is run, and when to stop."""

    def __init__(self, device: str, minutes: float) -> None:
        self.device = torch.device(device)
        self.real = self.device.type == "cuda"
        self.ends = time.monotonic() + 60 * minutes
        self._models: dict[int, Muva] = {}  # making one takes seconds
        self._plain: nn.Module | None = None
        self.backend = "inductor" if self.real else "aot_eager"  # compiling for the CPU takes minutes
        self.identities = 751 if self.real else 8
        self.batches = (64, 256) if self.real else (8, 16)
        self.crops = 8192 if self.real else 64
        self.rounds = 5 if self.real else 2
        # queries, gallery images, people
        self.tests = {"market": (3368, 15_913, 750), "msmt17": (11_659, 82_161, 3060)}
        if not self.real:
            self.tests = dict.fromkeys(self.tests, (20, 80, 6))

    @property
    def seconds_left(self) -> float:
        return self.ends - time.monotonic()

    def config(self) -> ModelConfig:
        if not self.real:
            return ModelConfig(backbone="tiny", architecture=TINY, pretrained=None, image_size=(48, 24), stride=8)
        architecture = copy.deepcopy(open_clip.get_model_config("ViT-B-16-quickgelu"))
        architecture["vision_cfg"]["image_size"] = [256, 128]
        return ModelConfig(backbone="random", architecture=architecture, pretrained=None)

    def model(self, identities: int | None = None) -> Muva:
        """Random, its gates open or shut but not in between, where a rounding error would turn one; on the CPU."""
        count = identities or self.identities
        if count not in self._models:
            self._models[count] = self._made(count)
        return copy.deepcopy(self._models[count])

    def _made(self, identities: int) -> Muva:
        model = build_model(self.config(), identities, seed=0)
        generator = torch.Generator().manual_seed(1)
        for predictor in model.image_encoder.mask_predictors:
            bias = predictor.mlp[2].bias
            sign = torch.randint(0, 2, bias.shape, generator=generator) * 2.0 - 1
            nn.init.normal_(predictor.mlp[2].weight, std=1e-3, generator=generator)
            with torch.no_grad():
                bias.copy_(sign * 2)
        return model

    def plain(self) -> nn.Module:
        """open_clip's own image encoder of the same size."""
        if self._plain is None:
            self._plain = open_clip.CLIP(**(self.config().architecture or {})).visual
        return copy.deepcopy(self._plain)

    def grid(self) -> PatchGrid:
        config = self.config()
        patch = (config.architecture or {})["vision_cfg"]["patch_size"]
        return PatchGrid(*config.image_size, patch, config.stride)

    def batch(self, model: Muva, size: int, identities: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2)
        shape = (size, 3, model.grid.image_height, model.grid.image_width)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        visible = torch.rand(size, model.num_parts, model.grid.count, generator=generator) > 0.7
        return images, torch.arange(size) // 4 % identities, visible

    def step(self, model: Muva, identities: int) -> ImageStep:
        generator = torch.Generator().manual_seed(3)
        text = torch.randn(identities, model.feature_dim, generator=generator) * 0.1
        step = ImageStep(model, text, LEARNING)
        rows = torch.randn(identities, model.feature_dim, generator=generator)
        step.memory.rows.copy_(F.normalize(rows, dim=1))
        return step

    def wait(self) -> None:
        if self.real:
            torch.cuda.synchronize()

    def context_is_lost(self) -> bool:
        """Whether this process can no longer use the GPU, as after a failed assertion of a kernel."""
        try:
            self.wait()
            return False
        except Exception:
            return True


# ---- (a) results: each function is also a test marked `gpu`


def check_float32(setting: Setting) -> dict[str, float]:
    """Outputs and gradients of one step on the device against those on the CPU."""
    found: dict[str, dict[str, Tensor]] = {}
    make_fabric("cpu", "32-true")  # TF32 is off
    for device in ("cpu", setting.device):
        model = setting.model(16)
        step, batch = setting.step(model, 16).to(device).train(), setting.batch(model, 8, 16)
        features, masks = model.encode_images(step_images(batch[0]).to(device))
        total, measured = step(*(tensor.to(device) for tensor in batch))
        total.backward()
        gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        outputs = {"features": features, "mask logits": masks, "losses": measured[:-1], "memory": step.memory.rows}
        found[str(device)] = {name: value.detach().cpu() for name, value in outputs.items()} | gradients
    own, other = found["cpu"], found[str(setting.device)]
    scale = max(float(value.abs().max()) for name, value in own.items() if name in dict(model.named_parameters()))
    differences = {}
    for name, value in own.items():
        largest = float(value.abs().max())
        if name in dict(model.named_parameters()):  # a gradient of rounding errors alone has no digits to agree in
            largest = max(largest, 1e-3 * scale)
        differences[name] = float((value - other[name]).abs().max()) / max(largest, 1e-12)
    worst = max(differences, key=lambda name: differences[name])
    require(differences[worst] <= TOLERANCE, f"{worst} differs by {differences[worst]:.1e}, allowed {TOLERANCE}")
    return {"largest_difference": differences[worst], "tensors": len(differences)}


def check_half(setting: Setting) -> dict[str, float]:
    """Steps in bfloat16, and on a GPU in float16 with a scaler, leave finite losses and weights."""
    found = {}
    for precision in ("bf16-mixed", "16-mixed") if setting.real else ("bf16-mixed",):
        fabric = make_fabric(setting.device.type, precision)  # type: ignore[arg-type]
        model = setting.model().to(setting.device)
        optimizer = image_optimizer(model, LEARNING, fused=setting.real)
        module, wrapped = fabric.setup(setting.step(model, setting.identities), optimizer)
        batch = [tensor.to(setting.device) for tensor in setting.batch(model, setting.batches[0], setting.identities)]
        losses = []
        for _ in range(STEPS):
            total, _ = module(*batch)
            fabric.backward(total)
            wrapped.step()
            wrapped.zero_grad()
            losses.append(total.item())
        finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
        require(finite and all(map(math.isfinite, losses)), f"{precision}: losses {losses}, weights finite: {finite}")
        found[f"loss_{precision}"] = losses[-1]
    return found


def check_resume(setting: Setting) -> dict[str, float]:
    """Two steps, the state saved and loaded into a fresh model, two more: the weights of four steps at once."""
    start, batch = setting.model(16), [tensor.to(setting.device) for tensor in setting.batch(setting.model(16), 16, 16)]

    def steps(state: dict[str, Any] | None, numbers: range) -> dict[str, Any]:
        model = setting.model(16).to(setting.device)
        optimizer, step = image_optimizer(model, LEARNING, fused=setting.real), setting.step(model, 16)
        step = step.to(setting.device).train()
        if state:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            step.memory.rows.copy_(state["memory"])
        for number in numbers:  # other images first and last: only Adam's moments still know the first ones
            step(batch[0].roll(number // 2, 0).clamp_min(number // 2 * 64), *batch[1:])[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "memory": step.memory.rows}
        with tempfile.TemporaryDirectory() as folder:
            torch.save(saved, Path(folder) / "state.pt")
            return dict(torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True))

    def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
        """Distance of all trained weights."""
        pairs = ((one["model"][name], other["model"][name]) for name, _ in start.named_parameters())
        return math.sqrt(sum(float((first.double() - second.double()).square().sum()) for first, second in pairs))

    first = steps(None, range(2))
    whole, cut = steps(None, range(4)), steps(first, range(2, 4))
    anew = steps({**first, "optimizer": steps(None, range(0))["optimizer"]}, range(2, 4))
    # of the weights as a whole: backward passes of attention add in no fixed order on GPUs, and Adam turns the sign of
    # a gradient that is nothing but rounding errors into a whole step
    difference, lost = (apart(whole, other) / apart(whole, first) for other in (cut, anew))
    require(difference <= 0.05, f"weights differ by {difference:.1e} of the way, {lost:.1e} without Adam's moments")
    return {"difference": difference, "difference_without_moments": lost}


def check_batches(setting: Setting) -> dict[str, float]:
    """Batches made on the device are to the byte those made on the CPU; colours may be a step of 255 apart."""
    with packed_crops(setting, 64) as (packed, boxes):
        given = Augmentation(flip=0.5, crop_padding=10, erasing=0.5, seed=3)
        coloured = Augmentation(colour_jitter=0.3, seed=3)
        worst = {}
        for name, augmentation, allowed in (("moved", given, 0), ("coloured", coloured, 2)):
            images = person_images(setting, packed, boxes, augmentation)
            images.epoch, plan = 2, in_order(len(images), 24)
            pairs = zip(load_batches(images, plan, 0, setting.device), load_batches(images, plan, 0), strict=True)
            steps = 0
            for found, expected in pairs:
                require(torch.equal(found.visible.cpu(), expected.visible), "visible patches differ")
                require(torch.equal(found.indices.cpu(), expected.indices), "indices differ")
                steps = max(steps, int((found.images.cpu().int() - expected.images.int()).abs().max()))
            require(steps <= allowed, f"{name} images differ by {steps} of 255")
            worst[f"{name}_steps_of_255"] = steps
    return worst


def check_compiled(setting: Setting) -> dict[str, float]:
    """A compiled encoder gives the features of the eager one."""
    model = setting.model(16).to(setting.device).eval()
    images = step_images(setting.batch(model, 8, 16)[0]).to(setting.device)
    with torch.no_grad():
        plain = model.image_encoder(images).features
        fast = torch.compile(model.image_encoder, dynamic=False, backend=setting.backend)(images).features
    difference = float((plain - fast).abs().max() / plain.abs().max())
    require(difference <= 1e-3, f"features differ by {difference:.1e}")
    return {"largest_difference": difference}


def check_ranking(setting: Setting) -> dict[str, float]:
    """Scores and ranked lists on the device are those of the CPU, copies in the gallery included."""
    query, gallery, people = (60, 900, 20)
    sides = features_of(query, gallery, people, 64, torch.device("cpu"))
    sides[2][100:140] = sides[2][200:240]  # equal distances: the lower index comes first
    arrays = [side.numpy() for side in sides]
    cameras = np.arange(query) % 3, np.arange(gallery) % 3
    given = arrays[0], arrays[1], cameras[0], arrays[2], arrays[3], cameras[1]
    expected = evaluate(*given, ranked=20)
    found = evaluate(*given, ranked=20, device=setting.device)
    require(expected.summary() == found.summary(), f"{expected.summary()} on the CPU, {found.summary()} on the device")
    return {"mean_ap": found.summary()["mean_ap"]}


def check_run(setting: Setting) -> dict[str, Any]:
    """A whole small run: both stages, then the scores of its features."""
    for name in ("pyarrow", "duckdb"):
        if importlib.util.find_spec(name) is None:
            return {"not_run": f"needs {name}"}
    from reid.config import load_config
    from reid.data.training_set import TrainingSet
    from reid.training.job import Job
    from reid.training.stage1 import learn_prompts
    from reid.training.stage2 import train_images

    people, each = 8, 8
    config = load_config(
        "tiny",
        "stage1.epochs=3 stage2.epochs=3 stage1.identities_per_batch=4 stage2.identities_per_batch=4 "
        "stage2.warmup_epochs=1 stage2.milestones=[3] data.embed_batch=24 data.cache_gib=0".split(),
    )
    fabric = make_fabric(setting.device.type, config.precision)
    model = build_model(config.model, people, seed=0).to(setting.device)
    size = (model.grid.image_height, model.grid.image_width)
    with (
        packed_crops(setting, people * each, size=size, people=people) as (packed, boxes),
        tempfile.TemporaryDirectory() as out,
    ):
        labels = np.repeat(np.arange(people), each)
        data = TrainingSet.of_arrays(labels, boxes)
        plain = PersonImages(data.paths, model.grid, TRAINING, boxes=boxes, packed=packed)
        moved = PersonImages(
            data.paths, model.grid, TRAINING, boxes=boxes, packed=packed, augmentation=Augmentation(flip=0.5)
        )
        job = Job(config, data, Path(out), fabric, plain, moved, None, None)
        train_images(model, job, learn_prompts(model, job))
        features = retrieval_features(model, plain, fabric, batch_size=24, workers=0)
    cameras = np.tile(np.arange(each), people)
    scores = evaluate(features[::4], labels[::4], cameras[::4], features, labels, cameras).summary()
    chance = 100 / people
    require(np.isfinite(features).all() and scores["mean_ap"] > 2 * chance, f"mAP {scores['mean_ap']:.1f}")
    return {"mean_ap": scores["mean_ap"], "rank_1": scores["rank_1"]}


CHECKS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "float32 equal to the CPU": check_float32,
    "half precision finite": check_half,
    "resume equal": check_resume,
    "batches equal": check_batches,
    "ranking equal": check_ranking,
    "stage 1, stage 2, scores": check_run,
    "compiled equal": check_compiled,
}


# ---- (b) to (d) speed


def speed(setting: Setting, out: "Report") -> None:
    """Images per second and peak memory of forward, and of forward, backward and Adam: plain open_clip and ours."""
    speeds(setting, out, [(setting.batches[0], "compiled")])


def more_speed(setting: Setting, out: "Report") -> None:
    """The same without compiling, for large batches, and with CUDA graphs."""
    eager = [(batch, "eager") for batch in setting.batches]
    speeds(setting, out, [*eager, (setting.batches[-1], "compiled"), (setting.batches[0], "graphs")])


def speeds(setting: Setting, out: "Report", modes: list[tuple[int, str]]) -> None:
    for batch, mode in modes:
        for what in ("inference", "step"):
            pair: dict[str, float] = {}
            for name in ("plain", "ours"):
                key = f"{what} {mode} batch {batch} {name}"
                if mode == "graphs" and not setting.real:
                    continue
                # compiling takes up to a minute and a half
                if setting.seconds_left < (100 if mode != "eager" and setting.real else 15 if setting.real else 0):
                    out.add("speed", key, {"not_run": "no time left"})
                    continue
                found = out.measure("speed", key, partial(one_speed, setting, name, what, mode, batch))
                if "images_per_s" in found:
                    pair[name] = found["images_per_s"]
            if len(pair) == 2:
                out.add("ratios", f"{what} {mode} batch {batch}", {"ours_over_plain": pair["plain"] / pair["ours"]})


def one_speed(setting: Setting, name: str, what: str, mode: str, batch: int) -> dict[str, float]:
    torch._dynamo.reset()
    device = setting.device
    model = setting.model().to(device)
    given = [tensor.to(device) for tensor in setting.batch(model, batch, setting.identities)]
    options: dict[str, Any] = {"dynamic": False, "backend": setting.backend}
    options |= {"mode": "reduce-overhead"} if mode == "graphs" else {}
    floats = step_images(given[0])

    def compiled(function: Any) -> Any:
        return function if mode == "eager" else torch.compile(function, **options)

    def half() -> Any:
        return torch.autocast(device.type, dtype=torch.bfloat16)

    if name == "plain":
        network = setting.plain().to(device)
        del model
    if what == "inference":
        run = compiled(network.eval() if name == "plain" else model.eval().image_encoder)

        @torch.no_grad()
        def once() -> None:
            with half():
                run(floats)

    elif name == "plain":
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-6, weight_decay=1e-4, fused=setting.real)
        run = compiled(network.train())

        def once() -> None:
            with half():
                loss = run(floats).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    else:
        step = setting.step(model, setting.identities).to(device).train()
        optimizer = image_optimizer(model, Stage2Config(), fused=setting.real)
        if mode != "eager":
            model.image_encoder.forward = compiled(model.image_encoder.forward)  # type: ignore[method-assign]

        def once() -> None:
            with half():
                total, _ = step(*given)
            total.backward()
            optimizer.step()
            optimizer.zero_grad()

    def round_of_graphs() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        once()

    seconds, peak = timed(setting, round_of_graphs if mode == "graphs" else once)
    return {"images_per_s": batch / seconds, "peak_gib": peak}


def timed(setting: Setting, once: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of a run, and the most memory of the device in GiB."""
    for _ in range(3 if setting.real else 1):
        once()
    setting.wait()
    if setting.real:
        torch.cuda.reset_peak_memory_stats()
    taken = []
    for _ in range(setting.rounds):
        started = time.perf_counter()
        for _ in range(3):
            once()
        setting.wait()
        taken.append((time.perf_counter() - started) / 3)
    peak = torch.cuda.max_memory_allocated() / 2**30 if setting.real else 0.0
    return statistics.median(taken), peak


def loader(setting: Setting, out: "Report") -> None:
    """Batches alone, a step alone, and both: the share of its time that the device waits for batches."""
    out.measure("loader", "waiting", partial(waiting_for_batches, setting))


def waiting_for_batches(setting: Setting) -> dict[str, float]:
    device, size = setting.device, setting.batches[0]
    with packed_crops(setting, setting.crops) as (packed, boxes):
        images = person_images(setting, packed, boxes, Augmentation(flip=0.5))
        labels = np.arange(len(images)) // 8 % setting.identities
        sampler = IdentityBatches(labels, identities_per_batch=size // 4, images_per_identity=4, seed=0)
        plan = sampler.epoch(1)[: 60 if setting.real else 3]
        model = setting.model().to(device)
        step = setting.step(model, setting.identities).to(device).train()
        optimizer = image_optimizer(model, Stage2Config(), fused=setting.real)
        every_label = torch.from_numpy(labels).to(device)
        count = sum(len(batch) for batch in plan)

        def train(batch: Any) -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                total, _ = step(batch.images, every_label[batch.indices], batch.visible)
            total.backward()
            optimizer.step()
            optimizer.zero_grad()

        def alone() -> None:
            for _ in load_batches(images, plan, 0, device):
                pass
            setting.wait()

        def with_step() -> None:
            for batch in load_batches(images, plan, 0, device):
                train(batch)
            setting.wait()

        kept = next(load_batches(images, plan[:1], 0, device))

        def step_alone() -> None:
            for _ in plan:
                train(kept)
            setting.wait()

        for _ in range(3):
            train(kept)
        seconds = {}
        for name, work in (("loader", alone), ("step", step_alone), ("both", with_step)):
            work()
            started = time.perf_counter()
            work()
            seconds[name] = time.perf_counter() - started
        rates = {f"{name}_images_per_s": count / taken for name, taken in seconds.items()}
        return {"share_of_time": max(0.0, 1 - seconds["step"] / seconds["both"]), **rates}


def retrieval(setting: Setting, out: "Report") -> None:
    """Embedding, and scoring at the sizes of Market-1501 and MSMT17, on the device."""
    with packed_crops(setting, setting.crops) as (packed, boxes):
        images = person_images(setting, packed, boxes, None)
        model = setting.model().to(setting.device).eval()

        def embed(precision: Any) -> dict[str, float]:
            fabric, size = make_fabric(setting.device.type, precision), setting.batches[-1]
            retrieval_features(model, first_of(images, 2 * size), fabric, batch_size=size, workers=0)
            started = time.perf_counter()
            retrieval_features(model, images, fabric, batch_size=size, workers=0)
            rate = len(images) / (time.perf_counter() - started)
            sizes = {name: query + gallery for name, (query, gallery, _) in setting.tests.items()}
            return {"images_per_s": rate} | {f"seconds_for_{name}_at_it": count / rate for name, count in sizes.items()}

        for precision in ("32-true", "bf16-mixed"):
            out.measure("retrieval", f"embedding {precision}", partial(embed, precision))
    make_fabric(setting.device.type, "32-true")
    for name, (query, gallery, people) in setting.tests.items():

        def score(query: int = query, gallery: int = gallery, people: int = people) -> dict[str, float]:
            dimensions = 2048 if setting.real else 32
            sides = features_of(query, gallery, people, dimensions, setting.device)
            cameras = np.arange(query) // people % 6, np.arange(gallery) // people % 6
            arrays = [side.cpu().numpy() for side in sides]
            given = arrays[0], arrays[1], cameras[0], arrays[2], arrays[3], cameras[1]
            evaluate(*(part[:64] for part in given[:3]), *given[3:], device=setting.device)
            started = time.perf_counter()
            found = evaluate(*given, device=setting.device)
            return {"seconds": time.perf_counter() - started, "mean_ap": found.summary()["mean_ap"]}

        out.measure("retrieval", f"ranking {name}", score)


def masks(setting: Setting, out: "Report") -> None:
    """One attention of ViT-B/16's size with each way to say who may attend to whom, and which one is best."""
    shape = (64, 12, 132, 64) if setting.real else (2, 2, 22, 16)
    for what in ("inference", "training"):
        forms = all_forms(shape, 3, setting.device, torch.bfloat16, flex=setting.real)
        milliseconds: dict[str, float] = {}
        for name, form in forms.items():
            once = run_of(form, training=what == "training")

            def measured(once: Callable[[], None] = once) -> dict[str, float]:
                return {"milliseconds": 1e3 * timed(setting, once)[0]}

            found = out.measure("masks", f"{what} {name}", measured)
            if "milliseconds" in found:
                milliseconds[name] = found["milliseconds"]
        if milliseconds.keys() - {"none"}:
            out.add("masks", f"best for {what}", {"form": best_form(milliseconds)})

    def chosen() -> dict[str, str]:
        encoder = setting.model().to(setting.device).image_encoder
        choose_mask_form(encoder, make_fabric(setting.device.type, "bf16-mixed"), setting.batches[0])
        return {"form": "additive" if encoder.additive else "boolean"}

    out.measure("masks", "chosen for a training", chosen)


def equal(setting: Setting, out: "Report") -> None:
    for name, check in CHECKS.items():
        out.measure("equal", name, partial(check, setting))


# what is worth most comes first: later ones may find no time
SECTIONS: dict[str, Callable[[Setting, "Report"], None]] = {
    "equal": equal,
    "speed": speed,
    "loader": loader,
    "retrieval": retrieval,
    "masks": masks,
    "more": more_speed,
}


# ---- generated data


@contextmanager
def packed_crops(
    setting: Setting, count: int, *, size: tuple[int, int] | None = None, people: int | None = None
) -> Iterator[tuple[PackedImages, np.ndarray]]:
    """A pack of generated crops: noise around a colour of each person, and three part boxes."""
    height, width = size or ((256, 128) if setting.real else (48, 24))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "crops.npy"
        pack = np.lib.format.open_memmap(path, mode="w+", dtype=record_type((height, width)), shape=(count,))
        noise = rng.integers(0, 90, (16, 3, height, width), dtype=np.uint8)
        colours = rng.integers(0, 160, (people or count, 3, 3, 1, 1), dtype=np.uint8)
        for index in range(count):
            pixels = noise[index % 16].copy()
            for band, colour in enumerate(colours[index * len(colours) // count]):  # of head, clothes and legs
                rows = slice(band * height // 3, (band + 1) * height // 3)
                pixels[:, rows] += colour
            pack[index]["pixels"], pack[index]["size"] = pixels, (height, width)
        third = height / 3
        boxes = np.array([[0, place * third, width, (place + 1) * third] for place in range(3)])
        packed = PackedImages((pack,), np.zeros(count, np.int32), np.arange(count))
        yield packed, np.tile(boxes, (count, 1, 1))


def person_images(
    setting: Setting, packed: PackedImages, boxes: np.ndarray, augmentation: Augmentation | None
) -> PersonImages:
    grid = setting.grid()
    files = [Path(f"{index}.jpg") for index in range(len(packed))]
    return PersonImages(files, grid, TRAINING, boxes=boxes, augmentation=augmentation, packed=packed)


def first_of(images: PersonImages, count: int) -> PersonImages:
    return PersonImages(
        images.files[:count], images.grid, images.mode, boxes=images.boxes[:count], packed=images.packed
    )


def features_of(query: int, gallery: int, people: int, dimensions: int, device: torch.device) -> list[Tensor]:
    """Query features and identities, gallery features and identities: people in noise, L2-normalised."""
    generator = torch.Generator(device).manual_seed(0)
    centres = torch.randn(people, dimensions, generator=generator, device=device)
    sides = []
    for count in (query, gallery):
        identities = torch.arange(count, device=device) % people
        noise = torch.randn(count, dimensions, generator=generator, device=device)
        sides += [F.normalize(centres[identities] + 2.5 * noise, dim=1), identities]
    return sides


def step_images(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


# ---- the report


class ContextLostError(Exception):
    """A CUDA error after which every call of this process fails."""


class Report:
    """Figures by section and name, in a file that is whole after each of them."""

    def __init__(self, path: Path, setting: Setting) -> None:
        self.path, self._setting = path, setting
        device = torch.cuda.get_device_name() if setting.real else "CPU: a tiny run that measures nothing"
        self.found: dict[str, Any] = {
            "device": device,
            "gpu": setting.real,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cpus": os.cpu_count(),
        }

    def add(self, section: str, name: str, figures: dict[str, Any]) -> dict[str, Any]:
        self.found.setdefault(section, {})[name] = figures
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.found, indent=2) + "\n")
        temporary.replace(self.path)
        print(f"{section:10} {name:45} {told(figures)}", flush=True)
        return figures

    def measure(self, section: str, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` gives, or why it failed. Raises ContextLostError where this process can run nothing more."""
        known: dict[str, Any] = self.found.get(section, {}).get(name, {})
        if known and "not_run" not in known:
            return known
        started = time.monotonic()
        try:
            figures = work()
            self._setting.wait()  # an error of a kernel is told by a later call, which is this one at the latest
        except Exception as err:  # the rest goes on
            traceback.print_exc()
            figures = {"failed": f"{type(err).__name__}: {' '.join(str(err).split())[:300]}"}
        lost = self._setting.context_is_lost()
        if lost:
            figures["context_lost"] = "the rest goes on in a new process; CUDA_LAUNCH_BLOCKING=1 names the kernel"
        figures = self.add(section, name, {**figures, "took_s": time.monotonic() - started})
        if lost:
            raise ContextLostError
        gc.collect()  # a failed measurement's tensors hang on its traceback
        if self._setting.real:
            torch.cuda.empty_cache()
        return figures

    @property
    def failures(self) -> list[str]:
        sections = [section for section in self.found.values() if isinstance(section, dict)]
        return [name for section in sections for name, figures in section.items() if "failed" in figures]


def told(figures: dict[str, Any]) -> str:
    shown = ((key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in figures.items())
    return "  ".join(f"{key} {value}" for key, value in shown)


def require(held: bool, message: str) -> None:
    if not held:
        raise AssertionError(message)


def main(arguments: list[str] | None = None) -> int:
    """0: everything ran; 1: a check failed or a measurement broke."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="no measurement begins later")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("RUNS_ROOT") or "runs") / "bench" / "gpu.json")
    parser.add_argument("--continue", dest="goes_on", action="store_true", help="leave out what --out has already")
    given = parser.parse_args(arguments)
    setting = Setting(given.device, given.minutes)
    if not setting.real:
        print("no GPU: the same at a tiny size on the CPU; nothing is measured by it", flush=True)
    out = Report(given.out, setting)
    if given.goes_on and given.out.is_file():
        out.found |= json.loads(given.out.read_text())
    for name, section in SECTIONS.items():
        if name not in given.only:
            continue
        if setting.seconds_left <= 0:
            out.add(name, "all", {"not_run": "no time left"})
            continue
        try:
            section(setting, out)
        except ContextLostError:
            left = ["--minutes", str(setting.seconds_left / 60), "--only", *given.only, "--device", given.device]
            sys.stdout.flush()
            os.execv(sys.executable, [sys.executable, __file__, *left, "--out", str(given.out), "--continue"])
        except Exception as err:
            traceback.print_exc()
            out.add(name, "all", {"failed": f"{type(err).__name__}: {err}"[:300]})
    print(f"written: {given.out}" + (f"; failed: {', '.join(out.failures)}" if out.failures else ""))
    return int(bool(out.failures))


if __name__ == "__main__":
    sys.exit(main())
