"""An estimate and its interval in words, the same on the terminal, the page and in figures."""

import math


def number_text(value: float | None) -> str:
    """Three digits; `open` for what the data does not give (null, or not finite)."""
    return "open" if value is None or not math.isfinite(value) else f"{value:.3g}"


def interval_text(value: float | None, low: float | None, high: float | None) -> str:
    """`1.23 [1.1, 1.4]`; one number where it is known exactly, `1.23, no interval` where neither end is known."""
    text, left, right = (number_text(x) for x in (value, low, high))
    if value is not None and value == low == high:
        return text
    return f"{text}, no interval" if left == right == "open" else f"{text} [{left}, {right}]"
