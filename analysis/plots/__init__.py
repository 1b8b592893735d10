"""Figures: fn(data, ax=None) -> Axes, an interval wherever there is a number."""
