"""Claims of the paper and of others, what measures each, and the verdicts."""
