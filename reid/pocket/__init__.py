"""The shipped CLIP's weights, model card and scores."""
