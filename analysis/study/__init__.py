"""The variance study: frozen responses of each policy, measured once, then every estimator at every group size."""

from analysis.study.run import load_pools, run_study

__all__ = ["load_pools", "run_study"]
