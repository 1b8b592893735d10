"""The ledger: published claims, their thresholds, what measures each, and the verdicts."""
