"""A small CLIP that knows people's clothes: captions from attribute words, training, scores, the shipped files."""
