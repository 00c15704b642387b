"""Which data sets a model is trained and tested on, which splits, and what papers report."""
