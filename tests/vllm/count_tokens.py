"""Prompt tokens by the model's own processor, the oracle of the token check; needs vLLM's environment.

    echo '[["Where is the head?", 280, 560], ...]' | python tests/vllm/count_tokens.py CHECKPOINT

Reads [text, image width, image height] (pixels), writes one count for each.
"""

import json
import sys

from PIL import Image
from transformers import AutoProcessor


def main() -> None:
    processor = AutoProcessor.from_pretrained(sys.argv[1])
    counts = []
    for text, width, height in json.load(sys.stdin):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[prompt], images=[Image.new("RGB", (width, height))])
        counts.append(len(inputs["input_ids"][0]))
    json.dump(counts, sys.stdout)


if __name__ == "__main__":
    main()
