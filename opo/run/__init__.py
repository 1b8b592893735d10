"""A run on disk: its folder, checkpoints, metric names and provenance."""
