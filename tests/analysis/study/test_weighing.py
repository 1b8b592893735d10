"""How algorithms weigh rewards of any scale, sign and order, and files that stand there twice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import OWN, rows, write

from analysis.commands.audit import audited, main
from analysis.config.audit import load_config, weighing
from analysis.study.external import read_groups
from analysis.study.external.audit import Answers, audit
from opo.errors import UserError

EQUIVARIANT = [
    "none",
    "group_mean",
    "leave_one_out",
    "length_weighted_loo",
    "rloo",
    "opo",
    "kalman",
    "pkpo",
    "quantile",
]


def ragged(scale: float = 1.0, least: float = -1.0) -> list[Answers]:
    """Twelve prompts of 2 to 8 responses; three are silent."""
    rng = np.random.default_rng(0)
    values = np.array([max(least, value) for value in (-1.0, 0.0, 0.25, 0.5, 1.0)])
    found = []
    for p in range(12):
        size = 2 + p % 7
        rewards = np.full(size, values[p]) if p < 3 else np.append(rng.choice(values, size - 1), 0.75)
        found.append(Answers(f"p{p}", scale * rewards, rng.integers(1, 30, size).astype(float)))
    return found


def measured(prompts: list[Answers], names: list[str]) -> dict[str, Any]:
    return audit(prompts, names, 100, np.random.default_rng(0))


def values(row: dict[str, Any]) -> dict[str, float]:
    return {measure: found["value"] for measure, found in row.items() if measure != "by_order"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e11])
def test_measures_do_not_depend_on_the_scale_of_rewards(scale: float) -> None:
    one, other = (measured(ragged(s), EQUIVARIANT) for s in (1.0, scale))
    assert one["silent"] == other["silent"]
    for name in EQUIVARIANT:
        assert values(other["algorithms"][name]) == pytest.approx(values(one["algorithms"][name]), rel=1e-6), name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("least", [-1.0, 0.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 7.0, 1e12])
def test_an_algorithm_that_takes_no_such_rewards_says_why(scale: float, least: float) -> None:
    found = measured(ragged(scale, least), weighing())["algorithms"]
    refused = {name: row["not_applicable"] for name, row in found.items() if "not_applicable" in row}
    assert [*refused] == (["max_rl"] if least < 0 else [])
    for reason in refused.values():
        assert reason.startswith("prompt p")
        assert reason.endswith("has a negative reward, allowed are rewards >= 0")


def test_a_file_of_negative_rewards_is_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "own.jsonl", rows(reward=lambda p, g: g % 2 - 1.0))
    main({"rollouts": str(file), "num_bootstrap": 100, "estimators": ["opo", "rloo", "max_rl"]}, tmp_path / "out")
    said = capsys.readouterr().out
    assert "max_rl is not applicable: prompt 0 has a negative reward" in said
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["algorithms"]["opo"]["silent"]["value"] == 0
    main({"rollouts": str(file), "num_bootstrap": 100, "estimators": ["max_rl"]}, tmp_path / "out")


def test_only_what_is_said_to_hangs_on_the_order_of_responses() -> None:
    prompts = ragged()
    turned = [Answers(p.name, p.rewards[::-1].copy(), p.lengths[::-1].copy()) for p in prompts]
    one, other = (measured(given, weighing())["algorithms"] for given in (prompts, turned))
    assert [name for name, row in one.items() if row.get("by_order")] == ["kalman"]
    for name in one.keys() - {"kalman", "max_rl"}:
        assert values(one[name]) == pytest.approx(values(other[name])), name


@pytest.mark.parametrize("times", [2, 3])
def test_a_file_that_stands_there_again_changes_nothing(times: int, tmp_path: Path) -> None:
    """Ragged groups, of one response too, which alone could be two equal answers."""
    rng = np.random.default_rng(0)
    content = [
        {"prompt_id": p, "prompt": f"{p}+1=", "response": "x" * int(rng.integers(30)), "reward": float(g % 2)}
        for p, size in enumerate([8, 8, 5, 3, 2, 6, 8, 1, 4, 8])
        for g in range(size)
    ]
    once, _ = read_groups([write(tmp_path / "once.jsonl", content)], OWN)
    again, notes = read_groups([write(tmp_path / "again.jsonl", content * times)], OWN)
    assert [len(group.records) for group in again] == [len(group.records) for group in once]
    assert sum(notes.left_out.values()) == (times - 1) * len(content)


def test_one_prompt_is_too_few(tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", rows(1))
    with pytest.raises(UserError, match="1 prompt has two scored responses or more; two are needed"):
        audited(load_config({"rollouts": str(file)}))
