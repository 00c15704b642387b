"""Finding people in a gallery of embeddings: exact and approximate search, and what a distance is worth."""
