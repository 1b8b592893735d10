"""Plans against the peaks of real runs, a process a rank: within a fifth."""

from pathlib import Path

import pytest
from peaks import RUNS, compare, measured_mib, planned_mib

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
WITHIN = 0.2
CASES = [(name, ranks) for name in RUNS for ranks in (1, 2) if not (ranks == 1 and "sharded" in name)]


def test_a_training_of_the_built_in_policy_peaks_where_its_plan_says(tmp_path: Path) -> None:
    overrides = ["steps=1"]
    planned, measured = (of("train", overrides, 1, tmp_path) for of in (planned_mib, measured_mib))
    assert planned == pytest.approx(measured, rel=WITHIN)


@pytest.mark.prove
@pytest.mark.parametrize(("name", "ranks"), CASES)
def test_plans_are_right_within_a_fifth(name: str, ranks: int) -> None:
    planned, measured = compare(name, ranks)
    assert planned == pytest.approx(measured, rel=WITHIN), (planned, measured)
