"""Figures of studies, runs, reports and notebooks: fn(data, ax=None) -> Axes, with an interval at every estimate."""
