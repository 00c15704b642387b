"""Engines: the things that ground body parts. `factory.py` makes them by name."""
