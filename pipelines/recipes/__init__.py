"""How the shipped pocket models are made, and the benchmark of the method."""
