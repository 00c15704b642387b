"""The contracts of both halves: schemas, manifests, the label store, images, data sets, errors. Imports only itself."""
