"""Plans against the peaks of real runs, a process a rank: within a fifth."""

from pathlib import Path

import pytest
from peaks import RUNS, compare

pytestmark = [  # what libraries and the allocator hold differs between machines: no test for all of them
    pytest.mark.prove,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc"),
]
WITHIN = 0.2
CASES = [(name, ranks) for name in RUNS for ranks in (1, 2) if not (ranks == 1 and "sharded" in name)]


@pytest.mark.parametrize(("name", "ranks"), CASES)
def test_plans_are_right_within_a_fifth(name: str, ranks: int) -> None:
    planned, measured = compare(name, ranks)
    assert planned == pytest.approx(measured, rel=WITHIN), (planned, measured)
