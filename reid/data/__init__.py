"""Training images: manifests joined with part labels, decoded, augmented, boxes turned into patch masks, sampled."""
