"""What a command costs before it is started: the memory of a rank, and hours. Nothing is downloaded but a config, no weight is read."""
