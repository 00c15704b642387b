"""The pocket grounder: its architecture, data, training and scores."""
