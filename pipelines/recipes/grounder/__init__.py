"""How the pocket grounder is made: architecture, training data, training, evaluation, the shipped files."""
