"""The engine `local` with tiny random models: whatever they say ends as a box or a named status, in the right place."""

import asyncio
import io
import json
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers (extra `local`) is not installed")

import torch
from PIL import Image

from labeler.annotation.annotate import AnnotateOptions, annotate
from labeler.engines import build_engine
from labeler.engines import local_transformers_model as model_module
from labeler.engines.answers import LONG_ANSWER
from labeler.engines.local_transformers import LocalTransformers
from labeler.engines.local_transformers_model import LocalReply
from labeler.grounding.coordinates import FAMILIES, prepare
from labeler.grounding.engine import EngineUnfitError, PartOutcome
from labeler.grounding.ground import ground_image
from labeler.grounding.retry import Attempt
from labeler.service.grounding_service import GroundingService
from labeler.settings import load_settings
from shared.errors import ConfigError
from shared.geometry import Box
from shared.labels import label_shards, read_labels
from shared.schemas import PARTS, LabelStatus
from tests.vllm.make_checkpoint import MAKERS, tokenizer

ANSWERED = {LabelStatus.OK, LabelStatus.ABSENT, LabelStatus.TRUNCATED, LabelStatus.UNPARSEABLE, LabelStatus.INVALID_BOX}
SENT = {"head": [88, 26, 193, 131], "upper_body": [44, 149, 236, 315], "legs": [70, 333, 210, 534]}  # of 280 x 560


def make_checkpoint(family: str, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = MAKERS[family](tokenizer())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=sorted(MAKERS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def qwen25(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen2.5-vl", tmp_path_factory.mktemp("models") / "qwen2.5-vl")


def settings_for(folder: Path, **rest: Any):
    return load_settings(engine="local", model=str(folder), device="cpu", max_attempts=1, **rest)


def says(engine: LocalTransformers, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the model's generation say these texts, by question; returns the batch sizes it was asked with."""
    model, tokens = engine._batches._run.__self__._model, engine._batches._run.__self__._tokenizer
    sizes: list[int] = []

    def generate(*, input_ids, max_new_tokens, logits_processor, pad_token_id, **rest):
        sizes.append(len(input_ids))
        said = [[*tokens(texts.pop(0))["input_ids"], tokens.eos_token_id] for _ in input_ids]
        steps = min(max_new_tokens, max(map(len, said)))
        rows = torch.tensor([(row + [pad_token_id] * steps)[:steps] for row in said])
        output = input_ids
        for step in range(steps):
            logits = torch.zeros(len(said), len(tokens)).scatter(1, rows[:, step : step + 1], 9.0)
            for processor in logits_processor:
                processor(output, logits)
            output = torch.cat([output, rows[:, step : step + 1]], dim=1)
        return output

    monkeypatch.setattr(model, "generate", generate)
    return sizes


async def test_a_long_answer_is_not_read_in_the_event_loop(qwen25, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build_engine(settings_for(qwen25))
    places = []

    def read(question, text, finish, logprobs, sent, vocabulary):
        places.append((len(text) > LONG_ANSWER, threading.current_thread() is threading.main_thread()))
        return dict.fromkeys(question.parts, PartOutcome(LabelStatus.UNPARSEABLE))

    monkeypatch.setattr("labeler.engines.local_transformers.outcomes", read)
    for text in ("[]", "[" * (LONG_ANSWER + 1)):
        reply = LocalReply(text, "stop", None, 1, 1)
        monkeypatch.setattr(engine._batches, "_run", lambda questions, reply=reply: [reply] * len(questions))
        await engine.ground(Image.new("RGB", (64, 128)), PARTS, Attempt())
    await engine.close()
    assert set(places) == {(False, True), (True, False)}


def test_a_run_over_random_weights_ends_in_named_statuses(checkpoint, make_dataset, tmp_path: Path) -> None:
    root, manifest = make_dataset(3)
    settings = settings_for(checkpoint, logprobs=True, local_batch=4)
    options = AnnotateOptions(failed_share_limit=1.0)
    engine = build_engine(settings)
    assert isinstance(engine, LocalTransformers)
    ask = ground_image(engine, (root / manifest[0].path).read_bytes(), PARTS, max_pixels=10**6, max_attempts=1)
    answer = asyncio.run(ask)
    assert {row.status for row in answer.parts} <= ANSWERED
    assert answer.prompt_tokens > 200 or checkpoint.name == "qwen3-vl"  # 20 x 10 image tokens and the text
    assert answer.completion_tokens > 0 and answer.space.endswith(
        "280x560" if checkpoint.name == "qwen2.5-vl" else "576"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "labeler.service.grounding_service.GroundingService.readiness", _ready
        )  # random weights answer with no box
        annotate(manifest, root, "toy", tmp_path / "labels", "r", settings=settings, options=options)
    rows = read_labels(label_shards(tmp_path / "labels"))
    assert len(rows) == 9 and {row.status for row in rows} <= ANSWERED
    assert all(row.raw_text is not None for row in rows if row.status == LabelStatus.UNPARSEABLE)
    assert {(row.engine, row.model) for row in rows} == {("local", str(checkpoint))}


async def _now(function: Any, *given: Any) -> Any:
    return function(*given)


async def _ready(service: Any) -> float:
    return 0.0


async def test_what_the_model_says_lands_where_it_was_painted(qwen25, painted, paint, monkeypatch) -> None:
    engine = build_engine(settings_for(qwen25, logprobs=True))
    text = json.dumps(SENT, separators=(",", ":"))
    sizes = says(engine, [text, f"```json\n{text}\n```", '{"head":null}', text[:-9]], monkeypatch)
    monkeypatch.setattr("labeler.engines.local_transformers.asyncio.to_thread", _now)  # keeps the questions in order
    images = [Image.open(io.BytesIO(paint())).convert("RGB")] * 4
    answers = await asyncio.gather(*(engine.ground(image, PARTS, Attempt()) for image in images))
    await engine.close()
    assert sum(sizes) == 4 and len(sizes) < 4
    for answer in answers[:2]:
        for part, outcome in answer.parts.items():
            assert outcome.image_box == pytest.approx(painted[part], abs=0.5)
            chance = 9 - math.log(math.exp(9) + len(engine._batches._run.__self__._tokenizer) - 1)
            assert outcome.score == pytest.approx(math.exp(chance), rel=1e-4)
    assert answers[2].parts["head"].status == LabelStatus.ABSENT
    assert answers[3].parts["legs"].status == LabelStatus.UNPARSEABLE


async def test_an_answer_without_end_is_truncated(qwen25, paint, monkeypatch) -> None:
    engine = build_engine(settings_for(qwen25, prompt_mode="per_part"))
    sizes = says(engine, ["[1, 2, 3, 4] " * 200, "[88,26,193,131]", "[1,1," * 90], monkeypatch)
    answer = await engine.ground(Image.open(io.BytesIO(paint())).convert("RGB"), PARTS, Attempt())
    await engine.close()
    statuses = [answer.parts[part].status for part in PARTS]
    assert statuses == [LabelStatus.TRUNCATED, LabelStatus.OK, LabelStatus.TRUNCATED] and sizes == [3]
    assert answer.parts["upper_body"].image_box == pytest.approx(Box(20.1, 5.9, 44.1, 29.9), abs=0.1)
    assert answer.parts["upper_body"].score is None  # nobody asked for log-probabilities


def test_answers_do_not_depend_on_the_batch_and_scores_are_the_models_own(checkpoint: Path, paint) -> None:
    model = model_module.LocalModel.load(settings_for(checkpoint, logprobs=True, dtype="float32"))
    images = [paint(), paint(48, 160), paint(128, 256)]
    asked = []
    for number, content in enumerate(images):
        resized, _ = prepare(Image.open(io.BytesIO(content)).convert("RGB"), model.family)
        asked.append(model_module.LocalQuestion(resized, "Where is the head" + "?" * number, 12, Attempt()))
    together = model.answer(asked)
    for question, batched in zip(asked, together, strict=True):
        (alone,) = model.answer([question])
        assert (alone.text, alone.finish_reason) == (batched.text, batched.finish_reason)
        assert alone.prompt_tokens == batched.prompt_tokens
        pairs = zip(alone.logprobs["content"], batched.logprobs["content"], strict=True)
        assert all(a["logprob"] == pytest.approx(b["logprob"], abs=1e-3) for a, b in pairs)
    scores = [_slow_logprobs(model, asked[0], together[0].completion_tokens)]
    assert [item["logprob"] for item in together[0].logprobs["content"]] == pytest.approx(scores[0], abs=1e-3)


def _slow_logprobs(model: model_module.LocalModel, question: model_module.LocalQuestion, count: int) -> list[float]:
    """From one forward pass over question and answer."""
    inputs = model._processor(text=[model._chat(question.text)], images=[question.image], return_tensors="pt")
    with torch.inference_mode():
        greedy = {"do_sample": False, "max_new_tokens": question.max_tokens, "repetition_penalty": 1.0}
        whole = model._model.generate(**inputs, **greedy, top_k=None, top_p=None, temperature=None)
        start = inputs["input_ids"].shape[1]
        extra = {key: value for key, value in inputs.items() if key in ("pixel_values", "image_grid_thw")}
        if "mm_token_type_ids" in inputs:  # text is 0
            padding = torch.zeros(1, whole.shape[1] - start, dtype=inputs["mm_token_type_ids"].dtype)
            extra["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], padding], dim=1)
        logits = model._model(input_ids=whole, attention_mask=torch.ones_like(whole), **extra).logits
    chances = logits[0].float().log_softmax(-1)
    return [float(chances[start - 1 + step, whole[0, start + step]]) for step in range(count)]


def test_sampling_can_differ_from_the_likeliest_answer(qwen25: Path, paint) -> None:
    model = model_module.LocalModel.load(settings_for(qwen25))
    resized, _ = prepare(Image.open(io.BytesIO(paint())).convert("RGB"), model.family)

    def texts(attempt: Attempt) -> set[str]:
        return {model.answer([model_module.LocalQuestion(resized, "?", 12, attempt)])[0].text for _ in range(2)}

    likeliest, sampled = texts(Attempt()), texts(Attempt(2, 5.0))
    assert len(likeliest) == len(sampled) == 1 and likeliest != sampled  # the attempt's number is the seed


def test_a_processor_that_resizes_stops_the_run(qwen25: Path, tmp_path: Path, paint) -> None:
    folder = tmp_path / "qwen2.5-vl-shrunk"
    shutil.copytree(qwen25, folder)
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (path := folder / file).is_file():
            config = json.loads(path.read_text())
            inner = config.get("image_processor", config)
            inner |= {"size": {"shortest_edge": 3136, "longest_edge": 50_000}, "max_pixels": 50_000, "min_pixels": 3136}
            path.write_text(json.dumps(config))
    engine = build_engine(settings_for(folder))
    with pytest.raises(EngineUnfitError, match="200"):
        asyncio.run(ground_image(engine, paint(), PARTS, max_pixels=10**6, max_attempts=1))


def test_a_batch_too_large_is_halved(qwen25: Path, paint, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_module.LocalModel.load(settings_for(qwen25))
    resized, _ = prepare(Image.open(io.BytesIO(paint())).convert("RGB"), model.family)
    asked = [model_module.LocalQuestion(resized, f"{number}?", 3, Attempt()) for number in range(5)]
    expected = model.answer(asked)
    whole, sizes = model._generate, []

    def small_memory(questions):
        sizes.append(len(questions))
        if len(questions) > 2:
            raise torch.OutOfMemoryError("full")
        return whole(questions)

    monkeypatch.setattr(model, "_generate", small_memory)
    assert model.answer(asked) == expected and sizes == [5, 2, 3, 1, 2]
    monkeypatch.setattr(model, "_generate", lambda questions: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(Exception, match="one question"):
        model.answer(asked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "Qwen/Qwen2.5-VL-72B-Instruct"}, r"not a folder[^$]*LABELER_ALLOW_DOWNLOAD"),
        ({"device": "abacus"}, "LABELER_DEVICE"),
        ({"device": "meta:900000000000"}, "LABELER_DEVICE"),
        ({"family": "llava"}, "LABELER_FAMILY"),
        ({"prompt_mode": "joint", "family": "cogvlm"}, "LABELER_PROMPT_MODE"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_remedy(
    qwen25: Path, settings, message, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    wanted = load_settings(**{"engine": "local", "model": str(qwen25), "device": "cpu", **settings})
    with pytest.raises(ConfigError, match=message):
        build_engine(wanted)


def test_pickled_weights_are_not_opened(qwen25: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(qwen25, folder)
    (weights,) = folder.glob("*.safetensors")
    weights.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        build_engine(settings_for(folder))


def test_the_family_is_read_from_the_configuration(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.symlink_to(checkpoint, target_is_directory=True)
    assert model_module.LocalModel.load(settings_for(folder)).family == FAMILIES[checkpoint.name]


async def test_the_shipped_model_passes_its_calibration_with_room() -> None:
    service = GroundingService(load_settings(engine="local"))
    iou = await service.readiness()
    await service.aclose()
    assert iou > service.settings.min_calibration_iou + 0.2
