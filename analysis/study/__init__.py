"""The variance study: its config, the policies it evaluates, rollouts in external formats, pools, audits and results."""

from analysis.study.run import load_pools, run_study

__all__ = ["load_pools", "run_study"]
