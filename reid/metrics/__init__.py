"""Retrieval metrics over plain arrays: mAP, mINP, CMC, k-reciprocal re-ranking, intervals."""
