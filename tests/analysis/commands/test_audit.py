"""`opo audit`: rewards and lengths alone, against sums written out, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.commands.audit import main
from analysis.config.audit import load_config, weighing
from analysis.study.external.audit import Answers, audit
from opo.errors import UserError

DATA = Path(__file__).parents[1] / "study" / "data"


def prompts(count: int = 40, silent: int = 10) -> list[Answers]:
    rng = np.random.default_rng(0)
    found = []
    for p in range(count):
        rewards = np.ones(8) * (p % 2) if p < silent else np.array([0.0, 1.0, *rng.integers(0, 2, 6)])
        found.append(Answers(str(p), rewards, rng.integers(1, 30, 8).astype(float)))
    return found


def test_measures_against_sums_written_out() -> None:
    given = prompts()
    found = audit(given, weighing(), 200, np.random.default_rng(0))
    assert found["silent"]["value"] == 0.25
    assert 0.14 < found["silent"]["low"] < 0.25 < found["silent"]["high"] < 0.41  # Wilson at 10 of 40: [0.142, 0.402]
    assert found["silent_at_most"]["value"] == 5 / 40
    opo = [p.rewards - (p.lengths * p.rewards).sum() / p.lengths.sum() for p in given]
    unit = [(p.rewards - p.rewards.mean()) * 8 / 7 for p in given]
    measures = found["algorithms"]["opo"]
    absolute, energy = np.abs(opo).sum(), np.square(opo).sum()
    assert measures["effective_share"]["value"] == pytest.approx(absolute**2 / (40 * 8 * energy))
    assert found["algorithms"]["length_weighted"]["energy"]["value"] == pytest.approx(energy / np.square(unit).sum())
    assert measures["positive_share"]["value"] == pytest.approx(np.square(np.maximum(opo, 0)).sum() / energy)
    for name in ("leave_one_out", "rloo", "dr_grpo"):
        assert found["algorithms"][name]["silent"]["value"] == 0.25
        assert (
            found["algorithms"][name]["effective_share"]["low"] < found["algorithms"][name]["effective_share"]["value"]
        )


def test_wider_intervals_are_of_fewer_prompts_and_few_give_none() -> None:
    def width(count: int) -> float:
        row = audit(prompts(count), ["opo"], 400, np.random.default_rng(0))["algorithms"]["opo"]["effective_share"]
        return row["high"] - row["low"]

    assert width(160) < width(20)
    few = audit(prompts(5, 1), ["opo"], 200, np.random.default_rng(0))
    assert few["silent"] == {"value": 0.2, "low": None, "high": None}


def test_a_file_of_trl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = {"rollouts": str(DATA / "completions_00001.parquet"), "num_bootstrap": 100}
    with pytest.raises(UserError, match=r"could be the reward: share_of_digits, brevity"):
        main(values, tmp_path)
    main(values | {"reward": {"column": "brevity"}}, tmp_path)
    found = json.loads((tmp_path / "audit.json").read_text(), parse_constant=pytest.fail)
    table = pl.read_parquet(DATA / "completions_00001.parquet")
    groups = table.group_by("prompt").agg(pl.col("brevity").n_unique())
    assert found["silent"]["value"] == (groups["brevity"] == 1).mean()
    assert found["length_mean"]["value"] == pytest.approx(table["completion"].str.len_chars().clip(1).mean())
    assert found["import"]["files"][0]["format"] == "TRL completions"
    assert (tmp_path / "figures" / "effective-shares.svg").exists()
    said = capsys.readouterr().out
    assert "4 prompts with 32 responses of step 1" in said
    assert "no intervals from fewer than 8 prompts" in said


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "rollouts: give a .parquet or .jsonl file"),
        ({"rollouts": "nowhere.jsonl"}, "rollouts=nowhere.jsonl: no such file"),
        ({"rollouts": str(DATA / "README.md"), "estimators": ["ppo"]}, "estimators has ppo: it needs more than"),
        ({"rollouts": str(DATA / "README.md"), "step": "x"}, "step=x: a step of training"),
        ({"rollout": "x"}, r"rollout: unknown key \(did you mean rollouts\?\)"),
    ],
)
def test_refusals(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_config(values)
