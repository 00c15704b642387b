"""The pocket grounder: a Qwen2.5-VL of a few million parameters that boxes body parts, and how it is made.

Only names are here; the modules beside it need torch and transformers.
"""

from pathlib import Path

import shared

POCKET_GROUNDER = Path(shared.__file__).parent / "pocket" / "grounder"  # the checkpoint that comes with the project
NAME = "pocket-grounder-2"  # what LABELER_MODEL and label rows call it; other weights get another number
