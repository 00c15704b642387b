"""A tiny vision-language model with random weights and its family's real processor files; needs vLLM's environment.

    python tests/vllm/make_checkpoint.py qwen2.5-vl|qwen3-vl FOLDER

It grounds nothing, but a server loads, resizes, counts, batches and guides it as it does the family's large models.
Whole boxes are tokens of its vocabulary: where the grammar lets it choose, nearly every choice is a box one can keep.
"""

import random
import sys
from pathlib import Path

import torch
import transformers as tr

from pipelines.recipes.grounder.special_tokens import CHAT_TEMPLATE, byte_tokenizer, token_ids

WIDTH = 128
HEAD = 32  # of the sizes that vLLM's attention has kernels for
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": WIDTH // HEAD,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "initializer_range": 0.2,  # large enough that answers depend on the image
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
    "initializer_range": 0.2,
}
ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [4, 6, 6]}  # time, rows, columns: HEAD / 2


def tokenizer() -> tr.Qwen2Tokenizer:
    """One token per byte, the family's special tokens, and boxes."""
    return byte_tokenizer(boxes(), max_length=32_768)


def boxes(count: int = 96) -> list[str]:
    """Different boxes as models write them: in pixels inside the images that are sent, in thousandths not too small."""
    chance = random.Random(0)
    corners = [(chance.randrange(40), chance.randrange(200)) for _ in range(count)]
    return [f"[{x},{y},{x + chance.randrange(90, 180)},{y + chance.randrange(60, 270)}]" for x, y in corners]


def qwen25(tokens: tr.Qwen2Tokenizer) -> tuple[torch.nn.Module, tr.ProcessorMixin]:
    text = {**TEXT, "vocab_size": len(tokens), "rope_parameters": ROPE}
    text |= {"bos_token_id": None, "eos_token_id": tokens.eos_token_id}
    vision = {**VISION, "depth": 2, "patch_size": 14, "fullatt_block_indexes": [1]}
    config = tr.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **token_ids(tokens))
    images = tr.Qwen2VLImageProcessor(min_pixels=4 * 28 * 28, max_pixels=16384 * 28 * 28)
    processor = tr.Qwen2_5_VLProcessor(images, tokens, tr.Qwen2VLVideoProcessor(), chat_template=CHAT_TEMPLATE)
    return tr.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3(tokens: tr.Qwen2Tokenizer) -> tuple[torch.nn.Module, tr.ProcessorMixin]:
    text = {**TEXT, "vocab_size": len(tokens), "head_dim": HEAD, "rope_parameters": {**ROPE, "mrope_interleaved": True}}
    vision = {**VISION, "depth": 3, "patch_size": 16, "deepstack_visual_indexes": [0, 1]}
    config = tr.Qwen3VLConfig(text_config=text, vision_config=vision, **token_ids(tokens))
    images = tr.Qwen2VLImageProcessor(
        patch_size=16,
        size={"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = tr.Qwen3VLProcessor(images, tokens, tr.Qwen3VLVideoProcessor(), chat_template=CHAT_TEMPLATE)
    return tr.Qwen3VLForConditionalGeneration(config), processor


MAKERS = {"qwen2.5-vl": qwen25, "qwen3-vl": qwen3}


def main() -> None:
    family, folder = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(0)
    tokens = tokenizer()
    model, processor = MAKERS[family](tokens)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    processor.video_processor.save_pretrained(folder)


if __name__ == "__main__":
    main()
