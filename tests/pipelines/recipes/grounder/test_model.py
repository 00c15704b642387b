"""The model is the family's own: our batched forward passes are transformers', and questions are a few tokens."""

from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers (extra `local`) is not installed")

import numpy as np
import torch
from PIL import Image

from labeler.grounding.coordinates import prepare
from labeler.grounding.parsing.parse import parse_answer
from labeler.grounding.prompts import Prompts
from labeler.grounding.vocabulary import SHARED
from pipelines.recipes.grounder.architecture import FAMILY, PATCH, build
from pipelines.recipes.grounder.examples import Batch, Examples, answer_pieces
from pipelines.recipes.grounder.objective import DenseHeads, Objective, answer_loss, text_positions
from pipelines.recipes.grounder.scenes import Scenes
from pipelines.recipes.grounder.tokenizer import LARGEST_NUMBER, number_ids
from pipelines.recipes.grounder.vision_tower import encode_patches, patches
from shared.geometry import Box
from shared.schemas import PARTS, LabelStatus


@pytest.fixture(scope="module")
def built() -> tuple[Any, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = build()
    return model.eval(), processor


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def asked(processor: Any, text: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("size", [(64, 128), (48, 128), (90, 256)])
def test_the_batched_tower_is_the_familys(built: tuple[Any, Any], size: tuple[int, int]) -> None:
    model, processor = built
    image, _ = prepare(noise(*size), FAMILY)
    inputs = processor(text=[asked(processor, "?")], images=[image], return_tensors="pt")
    with torch.no_grad():
        right = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output[0]
        ours = encode_patches(
            model.model.visual,
            patches(torch.from_numpy(np.array(image))[None]),
            image.height // PATCH,
            image.width // PATCH,
        )[0]
    assert right.shape == ours.shape == (image.width * image.height // PATCH**2, right.shape[1])
    assert torch.allclose(ours, right, atol=1e-4)


def test_training_sees_the_logits_that_the_whole_model_gives(built: tuple[Any, Any]) -> None:
    model, processor = built
    pixels = np.stack([np.array(prepare(noise(64, 128), FAMILY)[0])] * 2)
    scenes = Scenes(list(pixels), np.full((2, 3, 4), 50, np.float32))
    batch = Examples(scenes, scenes, processor, batch=2, seed=1).batch(0, real_share=1.0)
    seen = {}
    objective = Objective(model, DenseHeads(), number_ids(processor.tokenizer))
    model.get_input_embeddings()  # the logits are the last hidden states times this table
    hook = model.model.language_model.register_forward_hook(lambda *call: seen.update(said=call[-1].last_hidden_state))
    with torch.no_grad():
        objective(batch, with_text=True)
        hook.remove()
        text = processor.tokenizer.decode(batch.prompt)
        images = [Image.fromarray(one.numpy()) for one in batch.pixels]
        inputs = processor(text=[text] * 2, images=images, return_tensors="pt")
        inputs["input_ids"] = torch.cat([inputs["input_ids"], batch.answers], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, batch.answers.shape[1]))
        right = model.model(**inputs).last_hidden_state
    alike = torch.nn.functional.cosine_similarity(seen["said"].float(), right, dim=-1)
    assert alike.min() > 0.99  # training multiplies in bfloat16


def test_positions_are_the_familys(built: tuple[Any, Any]) -> None:
    model, processor = built
    image, _ = prepare(noise(48, 128), FAMILY)
    inputs = processor(text=[asked(processor, "?")], images=[image], return_tensors="pt")
    right, _ = model.model.get_rope_index(
        inputs["input_ids"], mm_token_type_ids=inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )
    place = inputs["input_ids"][0].tolist().index(model.config.image_token_id)
    ours = text_positions(inputs["input_ids"].shape[1], place, image.height // PATCH, image.width // PATCH)
    assert torch.equal(ours, right[:, 0])


@pytest.mark.parametrize(("mode", "most"), [("joint", 30), ("per_part", 20)])
def test_questions_are_short(built: tuple[Any, Any], mode: Any, most: int) -> None:
    tokenizer = built[1].tokenizer
    sent = prepare(noise(64, 128), FAMILY)[1]
    for question in Prompts.choose(FAMILY, mode, SHARED).questions(PARTS, sent, with_schema=True):
        text = asked(built[1], question.text)
        ids = tokenizer(text)["input_ids"]
        assert len(ids) <= most and tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["Grüße, 你好! 🙂\n\t", '{"bag":[1,2,3,4]}', "12345 007 1400", "<|im_end|"])
def test_any_text_can_be_written(built: tuple[Any, Any], text: str) -> None:
    tokenizer = built[1].tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_number_is_one_token(built: tuple[Any, Any]) -> None:
    tokenizer = built[1].tokenizer
    ids = number_ids(tokenizer)
    assert len(set(ids)) == LARGEST_NUMBER + 1
    assert all(tokenizer(f"{number},")["input_ids"][0] == ids[number] for number in (0, 7, 104, 560, LARGEST_NUMBER))


def test_an_answer_is_spelled_as_the_tokenizer_reads_it_and_parsed_as_it_was_meant(built: tuple[Any, Any]) -> None:
    tokenizer = built[1].tokenizer
    box = {part: np.array([10 + i, 20, 110, 220 + i], np.float32) for i, part in enumerate(PARTS)}
    gone = np.full(4, np.nan, np.float32)
    for hidden in range(2 ** len(PARTS)):
        boxes = {part: gone if hidden >> i & 1 else box[part] for i, part in enumerate(PARTS)}
        pieces = [piece if isinstance(piece, str) else str(round(piece)) for piece in answer_pieces(PARTS, boxes)]
        text = "".join(pieces)
        assert tokenizer.convert_tokens_to_ids(pieces) == tokenizer(text)["input_ids"]
        parsed = parse_answer(text.removesuffix("<|im_end|>"), "stop", PARTS)
        for i, part in enumerate(PARTS):
            expected = None if hidden >> i & 1 else Box(10.0 + i, 20, 110, 220 + i)
            assert (parsed[part].box, parsed[part].status) == (
                expected,
                LabelStatus.OK if expected else LabelStatus.ABSENT,
            )


def test_examples_are_the_same_again_and_pad_behind(built: tuple[Any, Any]) -> None:
    scenes = Scenes([np.array(noise(64, 128))] * 2, np.array([[[20, 5, 40, 30]] * 3] * 2, np.float32))
    first, again = (Examples(scenes, scenes, built[1], batch=4, seed=3).batch(9, real_share=0.5) for _ in range(2))
    assert isinstance(first, Batch)
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.targets, again.targets)
    padding = first.targets < 0
    assert (padding.int().diff(dim=1) >= 0).all()  # once padded, always padded
    assert (first.answers[padding] == built[1].tokenizer.pad_token_id).all()
    assert (first.numbers.isfinite() <= ~padding).all()


def test_the_answer_loss_is_least_at_the_truth() -> None:
    numbers, targets = torch.tensor([[50.4, torch.nan]]), torch.tensor([[50, 120]])
    ids = torch.arange(100)

    def loss(coordinate: float, token: int) -> float:
        logits = torch.full((1, 2, 130), -30.0)
        logits[0, 0, :100] = -0.5 * ((ids - coordinate) / 4.0) ** 2
        logits[0, 1, token] = 0.0
        return float(answer_loss(logits, targets, numbers, ids))

    assert loss(50.4, 120) == pytest.approx(0.0, abs=1e-3)
    assert loss(50.4, 120) < loss(53.0, 120) < loss(70.0, 120)
    assert loss(50.4, 121) > 10
