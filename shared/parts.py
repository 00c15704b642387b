"""The part vocabulary. A module of its own: training on arrays needs it, and no Arrow."""

# Order matters: part tokens, prompts, masks and label rows all use it.
PARTS: tuple[str, ...] = ("head", "upper_body", "legs")
PART_WORDS: dict[str, str] = {"head": "head", "upper_body": "upper body", "legs": "legs"}
