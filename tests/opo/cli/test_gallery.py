"""`opo algorithms`: every algorithm has a line, and an account with its formula and defaults."""

import subprocess
import sys

import pytest

from opo.catalogue import catalogue
from opo.cli.gallery import gallery
from opo.errors import UserError


def test_every_algorithm_has_a_line_and_an_account() -> None:
    table = gallery([])
    for name in catalogue():
        assert f"  {name} " in table
        assert "Source" in gallery([name])
        assert f"name: {name}" in gallery([name])


def test_a_preset_says_what_it_is_built_around() -> None:
    account = gallery(["pf_ppo"])
    assert "built around ppo" in account
    assert "filter: best_worst" in account


def test_a_wrong_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"opo algorithms grop: no such algorithm \(did you mean grpo"):
        gallery(["grop"])


def test_it_needs_no_torch() -> None:
    code = "import sys; from opo.cli import run; run(['algorithms', 'opo']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
