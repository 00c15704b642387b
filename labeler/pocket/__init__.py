"""The shipped grounder: a Qwen2.5-VL of 2.8 million parameters that boxes body parts (README.md has its scores)."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent  # a transformers checkpoint folder
NAME = "pocket-grounder-2"  # in LABELER_MODEL and label rows; other weights get another number
