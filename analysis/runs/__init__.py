"""Run folders as tables."""

from analysis.runs.load import Runs, load

__all__ = ["Runs", "load"]
