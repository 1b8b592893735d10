"""The ranking of a study: the interquartile mean against scipy, its bootstrap on a population whose mean is known, what is left out."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import trim_mean
from studies import write_run

from analysis.runs.load import load
from analysis.runs.ranking import Ranking, interquartile_mean, ranking
from analysis.variance.intervals import resample_counts
from opo.cli import main


def study(folder: Path, gains: dict[str, list[float]]) -> Path:
    """Runs of each algorithm with seeds 0, 1, ..., started in this order."""
    for order, (algo, values) in enumerate(gains.items()):
        for seed, gain in enumerate(values):
            run = write_run(folder / f"{algo}-s{seed}", algo, seed, gain)
            started = {"wandb_run_id": "0", "started": f"2026-01-01T00:{order:02d}:{seed:02d}+00:00"}
            (run / "run.json").write_text(json.dumps(started))
    return folder


def ranked(folder: Path) -> Ranking:
    found = ranking(load(folder), resamples=2000)
    assert found is not None
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 11])
def test_the_interquartile_mean_of_each_resample_is_scipys_trimmed_mean(size: int, rng: np.random.Generator) -> None:
    scores_N = rng.normal(size=size).round(1)  # with ties
    counts_BN = resample_counts(size, 50, rng)
    slow = [trim_mean(np.repeat(scores_N, counts.astype(int)), 0.25) for counts in counts_BN]
    np.testing.assert_allclose(interquartile_mean(scores_N, counts_BN), slow, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "covered"), [(2, 0.48), (3, 0.74), (5, 0.90), (8, 0.93)])
def test_intervals_hold_the_truth_as_often_as_the_module_says(
    size: int, covered: float, rng: np.random.Generator
) -> None:
    counts_BN, repeats = resample_counts(size, 1000, rng), 1500
    held = 0
    for scores_N in rng.normal(size=(repeats, size)):
        low, high = np.quantile(interquartile_mean(scores_N, counts_BN), [0.025, 0.975])
        held += low <= 0 <= high
    assert held / repeats == pytest.approx(covered, abs=3.5 * np.sqrt(covered * (1 - covered) / repeats))


def test_rows_go_from_best_to_worst_and_differences_to_what_was_started_first(tmp_path: Path) -> None:
    found = ranked(study(tmp_path, {"rloo": [0.01] * 3, "grpo": [0.02] * 3, "dr_grpo": [0.005] * 3}))
    assert (found.first, [row.name for row in found.rows]) == ("rloo", ["grpo", "rloo", "dr_grpo"])
    by_name = {row.name: row for row in found.rows}
    assert by_name["rloo"].difference is None
    # rewards are 0.3 + gain * step, over the last tenth (19, 20), up to noise of 0.01
    assert by_name["grpo"].score == pytest.approx(0.3 + 0.02 * 19.5, abs=0.03)
    assert by_name["grpo"].difference == pytest.approx(by_name["grpo"].score - by_name["rloo"].score)
    for row in found.rows:
        assert row.interval is not None
        assert row.interval[0] <= row.score <= row.interval[1]
        assert row.seeds == 3


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    """A seed that is good for both says nothing about their difference."""
    found = ranked(study(tmp_path, {"opo": [0.0, 0.02, 0.04], "rloo": [0.001, 0.021, 0.041]}))
    (row,) = [row for row in found.rows if row.name == "rloo"]
    assert row.interval is not None
    assert row.difference_interval is not None
    assert np.diff(row.difference_interval) < 0.1 * np.diff(row.interval)
    assert row.shared == 3


def test_one_seed_has_no_interval_and_a_missing_one_is_not_compared(tmp_path: Path) -> None:
    folder = study(tmp_path, {"opo": [0.01], "rloo": [0.02, 0.03]})
    found = {row.name: row for row in ranked(folder).rows}
    assert found["opo"].interval is None
    assert found["rloo"].interval is not None
    assert (found["rloo"].shared, found["rloo"].difference_interval) == (1, None)


def test_tasks_are_strata(tmp_path: Path) -> None:
    for task in ("easy", "hard"):
        study(tmp_path / task, {"opo": [0.01, 0.011], "rloo": [0.02, 0.021]})
        for config in (tmp_path / task).glob("*/config.yaml"):
            values = yaml.safe_load(config.read_text())
            config.write_text(yaml.safe_dump(values | {"task": {"name": task}}))
    found = ranked(tmp_path)
    assert found.tasks == ["easy", "hard"]
    assert [(row.name, row.seeds, row.shared) for row in found.rows] == [("rloo", 2, 2), ("opo", 2, 0)]


def test_runs_that_are_not_done_or_the_same_again_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path / "a", {"opo": [0.01, 0.01], "rloo": [0.02, 0.02]})
    study(tmp_path / "b", {"opo": [0.01]})
    (tmp_path / "a" / "rloo-s1" / "DONE").unlink()
    with pytest.raises(SystemExit, match="0"):
        main(["runs", f"path={tmp_path}", "--rank", "--json"])
    found = json.loads(capsys.readouterr().out)["ranking"]
    assert {Path(run).name for run in found["left_out"]} == {"rloo-s1", "opo-s0"}
    assert set(found["left_out"].values()) == {"stopped", "the settings and seed of another"}
    with pytest.raises(SystemExit, match="0"):
        main(["runs", f"path={tmp_path}", "--rank"])
    printed = capsys.readouterr().out
    assert "minus opo [95 %]" in printed
    assert "[one seed]" in printed
