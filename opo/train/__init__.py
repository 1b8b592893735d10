"""Training: the loop, the phases of a step, the rollout-trainer mismatch check, and the state that a resumed run restores."""
