"""The model: a Qwen2.5-VL with one patch per image token, small enough to train on two CPU cores."""

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from labeler.grounding.coordinates import FAMILIES
from pipelines.recipes.grounder.special_tokens import CHAT_TEMPLATE, token_ids
from pipelines.recipes.grounder.tokenizer import build_tokenizer, number_ids

FAMILY = FAMILIES["qwen2.5-vl"]
PATCH = FAMILY.factor  # pixels; one patch is one image token, the family merges 2 x 2 patches of half this side
HEAD_DIM = 32  # a size that vLLM's attention kernels support
VISION_WIDTH, VISION_DEPTH = 160, 5
TEXT_WIDTH, TEXT_DEPTH = 128, 3
# Positions are rows and columns of at most 30 tokens: with a small base every frequency separates them.
ROPE = {"rope_type": "default", "rope_theta": 30.0, "mrope_section": [2, 7, 7]}  # time, rows, columns; sum HEAD_DIM / 2
INIT_STD = 0.06
NEIGHBOUR_RADII = (1, 1, 2, 3, 4)  # distance in tokens that each vision layer attends to at first


def build() -> tuple[Any, Any]:
    """The randomly initialised model (float32) and its processor."""
    tokenizer = build_tokenizer()
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": TEXT_DEPTH,
            "num_attention_heads": TEXT_WIDTH // HEAD_DIM,
            "num_key_value_heads": TEXT_WIDTH // HEAD_DIM,
            "max_position_embeddings": 4096,
            "initializer_range": INIT_STD,
            "vocab_size": len(tokenizer),
            "rope_parameters": ROPE,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_heads": VISION_WIDTH // HEAD_DIM,
            "depth": VISION_DEPTH,
            "out_hidden_size": TEXT_WIDTH,
            "patch_size": PATCH,
            "spatial_merge_size": 1,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": list(range(VISION_DEPTH)),
            "initializer_range": INIT_STD,
        },
        tie_word_embeddings=True,
        **token_ids(tokenizer),
    )
    size = {"shortest_edge": FAMILY.min_pixels, "longest_edge": FAMILY.max_pixels}
    patches = {"patch_size": PATCH, "merge_size": 1, "temporal_patch_size": 2, "size": size}
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(**patches),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(**patches),
        chat_template=CHAT_TEMPLATE,
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    _initialise(model, number_ids(tokenizer))
    return model, processor


def save(model: Any, processor: Any, folder: Path) -> None:
    """Write a checkpoint that transformers and vLLM load: float32 safetensors, as bfloat16 costs box precision."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # vLLM reads preprocessor_config.json


@torch.no_grad()
def _initialise(model: Any, numbers: list[int]) -> None:
    """Depth-scaled projections, local attention in the vision tower, and ordered number embeddings."""
    for layers in (model.model.visual.blocks, model.model.language_model.layers):
        for layer in layers:
            attention = layer.attn.proj if hasattr(layer, "attn") else layer.self_attn.o_proj
            for projection in (attention, layer.mlp.down_proj):
                projection.weight.div_(math.sqrt(2 * len(layers)))
    for radius, block in zip(NEIGHBOUR_RADII, model.model.visual.blocks, strict=True):
        _init_local_attention(block.attn, radius)
    table = model.get_input_embeddings().weight
    table.normal_(0, 1 / math.sqrt(table.shape[1]))
    table[numbers] = number_embeddings(len(numbers), table.shape[1])


def number_embeddings(count: int, width: int) -> Tensor:
    """[count, width] sines and cosines of 0..count-1 at wavelengths from 12 to 4,000: close numbers are similar."""
    frequencies = 2 * math.pi / torch.logspace(math.log10(12), math.log10(4000), width // 2)
    angles = torch.arange(count)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1) / math.sqrt(width // 2)


def _init_local_attention(attention: Any, radius: int, strength: float = 5.0) -> None:
    """Bias four heads towards the tokens `radius` above, below, left and right, like a convolution.

    With rotary positions, constant queries and keys give a pair of tokens the logit sum of cos(frequency * (distance -
    offset)), which is largest at the offset. The other heads keep their random initialisation.
    """
    bias = attention.qkv.bias.view(3, attention.num_heads, HEAD_DIM)
    frequencies = rope_frequencies()[:3]  # the highest: they separate adjacent tokens
    for head, (rows, columns) in enumerate(((-radius, 0), (radius, 0), (0, -radius), (0, radius))):
        for axis, offset in enumerate((rows, columns)):
            for index, frequency in enumerate(frequencies.tolist(), start=axis * HEAD_DIM // 4):
                bias[0, head, index] = strength
                bias[1, head, index] = strength * math.cos(frequency * offset)
                bias[1, head, index + HEAD_DIM // 2] = -strength * math.sin(frequency * offset)


def rope_frequencies() -> Tensor:
    """[HEAD_DIM / 4] rotation per token in the vision tower, the same for rows and columns (base 10,000)."""
    return 10_000.0 ** -(torch.arange(0, HEAD_DIM // 2, 2) / (HEAD_DIM // 2))
