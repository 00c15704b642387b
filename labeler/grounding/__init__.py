"""Grounds one image with any engine: questions, answer parsing, coordinates, box checks, retries."""
