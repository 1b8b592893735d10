"""Measurements on rollouts and runs: exact gradient variance, statistics, claims, figures and reports."""
