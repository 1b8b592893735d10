"""Equality up to rounding: two numbers are the same where one sum, taken in another order, could give either.

0.1 + 0.2 and 0.3 differ by one unit in the last place. Whether a group counts as constant, which response is best and which
pairs are ordered must not hang on that. A float64 sum of n terms of one sign is off by at most n eps / 2 of itself (Higham 2002,
equation 4.4), so 1e-13 tells rewards of up to 900 parts from equal ones. What cancels to nearly zero is not told.
"""

from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-13  # of the larger of the two


def all_equal(values: Any) -> Tensor:
    """Bool (...,) from (..., G): true where the numbers of a row are equal up to rounding; NaN is left out, none is equal."""
    values = _float64(values)
    known = ~values.isnan()
    low, high = torch.where(known, values, torch.inf).amin(-1), torch.where(known, values, -torch.inf).amax(-1)
    return high - low <= TOLERANCE * torch.maximum(high.abs(), low.abs())


def levelled(values: Any) -> Tensor:
    """The same rows (..., G) in which numbers that are equal up to rounding have become one, the lowest of them; NaN stays."""
    values = _float64(values)
    ordered, place = values.sort(-1)  # NaN comes last
    below, above = ordered[..., :-1], ordered[..., 1:]
    apart = above - below > TOLERANCE * torch.maximum(above.abs(), below.abs())
    starts = torch.cat([torch.ones_like(ordered[..., :1], dtype=torch.bool), apart], -1)
    level = torch.where(starts & ~ordered.isnan(), ordered, -torch.inf).cummax(-1).values
    return torch.empty_like(values).scatter(-1, place, level).where(~values.isnan(), torch.nan)


def _float64(values: Any) -> Tensor:
    return values.double() if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
