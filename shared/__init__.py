"""What both halves agree on: errors, typed rows, boxes, images, shards, data sets. Imports only itself."""
