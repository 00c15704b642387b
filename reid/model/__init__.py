"""CLIP with part tokens and masked attention, learned prompts, and the checkpoint formats."""
