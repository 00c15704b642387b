"""Both training stages: losses, identity memory, optimiser, snapshots, distributed processes."""
