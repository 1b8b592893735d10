"""Training: the loop and the phases of a step."""
