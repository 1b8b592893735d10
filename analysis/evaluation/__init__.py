"""What a policy can do: pass@k, maj@k and diversity."""
