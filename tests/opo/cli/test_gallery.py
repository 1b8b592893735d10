"""`opo algorithms`: every algorithm has a line, and an account with its formula and defaults."""

import subprocess
import sys

import pytest

from opo.accounts import accounts
from opo.catalogue import catalogue
from opo.cli.gallery import gallery
from opo.cli.readme import folder, renewed, short_source
from opo.errors import UserError
from opo.systems import LEFT_OUT


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


def test_the_readme_is_what_its_sources_say() -> None:
    """`opo algorithms --readme` writes it anew."""
    text = (folder() / "README.md").read_text(encoding="utf-8")
    assert renewed(text) == text


def test_every_account_has_a_formula_a_source_and_what_it_is_unbiased_for() -> None:
    for name, account in accounts().items():
        assert account.formula, name
        assert short_source(account), name
        assert account.unbiased_for, name


def test_doubts_are_shown_where_a_user_looks() -> None:
    assert {"quantile", "harpg", "n_pg_igt", "epo", "t_ppo", "nash_mp", "tulu3_rlvr", "p3o", "rluf"} <= {
        name for name, account in accounts().items() if account.unverified
    }
    assert "unverified: QAE, arXiv 2509.22611 (its default q: unverified)" in gallery(["quantile"]).replace(
        "Source: ", ""
    )
    assert "In part unverified" in (folder() / "README.md").read_text(encoding="utf-8")


def test_what_is_left_out_has_a_reason_and_no_file() -> None:
    assert all(number and reason for _, number, reason in LEFT_OUT)
    assert len({name for name, *_ in LEFT_OUT}) == len(LEFT_OUT)
    assert not {name.lower() for name, *_ in LEFT_OUT} & set(accounts())
    assert "iTool" in gallery([])


def test_a_wrong_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"opo algorithms grop: no such algorithm \(did you mean grpo"):
        gallery(["grop"])


def test_it_needs_no_torch() -> None:
    code = "import sys; from opo.cli import run; run(['algorithms', 'opo']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
