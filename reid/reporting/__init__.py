"""The pieces of a run's report: what was recorded, what it looks like, how it is written down."""
