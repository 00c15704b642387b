"""The family's special tokens, chat template and byte-level base tokenizer; imports nothing of this project.

The tests of the real vLLM import it in vLLM's environment, which lacks the project's dependencies.
"""

from collections.abc import Iterable
from typing import Any

import transformers
from tokenizers.pre_tokenizers import ByteLevel

IMAGE_TOKEN = "<|image_pad|>"
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    IMAGE_TOKEN,
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'text' %}{{ item.text }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(added: Iterable[str], max_length: int) -> Any:
    """transformers' tokenizer of the family: one token per byte, the special tokens, and the `added` ones."""
    vocabulary = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL),
        model_max_length=max_length,
    )
    tokenizer.add_tokens(list(dict.fromkeys(added)))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def token_ids(tokenizer: Any) -> dict[str, int]:
    """Ids of the special tokens under the keys of the family's configuration."""
    names = {
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}
