"""Evaluation of a policy: pass@k, mean@k, maj@k and diversity, with intervals."""
