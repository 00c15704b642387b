"""A trained model applied to images: the feature bank and the embeddings of test images."""
