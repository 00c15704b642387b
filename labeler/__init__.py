"""The labelling half: a grounding service and the annotator that feeds it. Imports only `shared`, never torch."""
