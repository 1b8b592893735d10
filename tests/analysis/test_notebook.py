"""What notebooks start from: paths as people type them, the example that the project ships, and estimators of one's own."""

import io
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from analysis import notebook
from analysis.claims.evidence import between_groups
from analysis.examples import METRICS, reduce
from analysis.plots.variance import ratio_forest
from analysis.runs.groups import pair_by_updates, with_groups
from analysis.study.run import load_pools
from opo.errors import UserError

EXAMPLE = Path(__file__).parents[2] / "notebooks" / "example"


def baseline(rewards_MG: np.ndarray, lengths_MG: np.ndarray) -> np.ndarray:
    """OPO's, written anew."""
    return rewards_MG - (lengths_MG * rewards_MG).sum(1, keepdims=True) / lengths_MG.sum(1, keepdims=True)


def test_paths_are_those_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert notebook.find("runs/mine") == tmp_path / "runs" / "mine"
    assert notebook.find(str(tmp_path / "runs")) == tmp_path / "runs"
    with pytest.raises(UserError, match=r"runs/other: not found in "):
        notebook.find("runs/other")
    with pytest.raises(UserError, match=r"runs/mine: no variance study here"):
        notebook.study("runs/mine")
    with pytest.raises(UserError, match=r"wandb:mine: give wandb:ENTITY/PROJECT"):
        notebook.runs("wandb:mine")  # no path: `analysis.runs.load` reads it


def test_a_policy_is_known_by_its_name_and_by_its_label() -> None:
    study = notebook.study(str(EXAMPLE))
    assert study.compare("start").equals(study.compare("step-000000"))
    assert study.compare().equals(study.compare("step 30"))
    assert study.ratio("length_weighted", "start")["value"] == pytest.approx(1.23, abs=5e-3)  # as the README says
    with pytest.raises(UserError, match=r"'length': not compared with leave_one_out; there are none, group_mean"):
        study.ratio("length")
    with pytest.raises(
        UserError, match=r"policy 'begin': the study has step-000000 \(start\), step-000015 \(step 15\)"
    ):
        study.compare("begin")
    with pytest.raises(UserError, match=r"group_size': 7.* its group sizes are \[2, 4, 8, 16\]"):
        study.compare("start", 7)


@pytest.mark.parametrize("group_size", [None, 4])
def test_an_estimator_of_ones_own_is_measured_on_the_groups_of_the_study(group_size: int | None) -> None:
    """The rows that were there come out again, and OPO's baseline written anew has the row of OPO's baseline."""
    study = notebook.study(str(EXAMPLE))
    own = notebook.with_estimators(str(EXAMPLE), {"mine": baseline}, "start", group_size)
    columns = ("estimator", "value", "low", "high")
    before = study.compare("start", group_size).select(columns)
    again = own.compare().select(columns)
    theirs, mine = again.filter(pl.col("estimator") != "mine"), again.filter(estimator="mine")
    opo = before.filter(estimator="length_weighted")
    for old, new in zip([*before.iter_rows(), *opo.iter_rows()], [*theirs.iter_rows(), *mine.iter_rows()], strict=True):
        assert new[0] in (old[0], "mine")
        for expected, got in zip(old[1:], new[1:], strict=True):
            assert got is None if expected is None else got == pytest.approx(expected, rel=1e-6, abs=1e-9)
    with pytest.raises(UserError, match=r"leave_one_out: the study has an estimator of that name"):
        notebook.with_estimators(str(EXAMPLE), {"leave_one_out": baseline})
    with pytest.raises(UserError, match=r"step-000030: no pools here"):
        notebook.with_estimators(str(EXAMPLE), {"mine": baseline}, "step 30")


def test_groups_of_the_example() -> None:
    runs = notebook.runs(str(EXAMPLE))
    assert pair_by_updates(runs) == ("grpo (4 updates)", "grpo")
    steps = with_groups(runs)
    found = between_groups(steps, "opo", "grpo", "train/reward_mean")
    assert found.replicates == 3
    assert found.effect == pytest.approx(0.064, abs=5e-4)  # as the README says
    assert between_groups(steps, "grpo", "opo", "train/reward_mean").effect == pytest.approx(-found.effect)
    with pytest.raises(UserError, match=r"group 'opp': these runs have grpo"):
        between_groups(steps, "opp", "grpo", "train/reward_mean")
    one = runs.runs.filter(updates_per_rollout=1)
    with pytest.raises(UserError, match=r"no algorithm here ran with one and with several updates"):
        pair_by_updates(type(runs)(runs.metrics.filter(pl.col("run").is_in(one["run"].implode())), one))


def test_the_example_is_what_reducing_leaves(tmp_path: Path) -> None:
    """Reducing what is reduced changes nothing, and what figures need is all there."""
    shutil.copytree(EXAMPLE, tmp_path / "whole")
    reduce(tmp_path / "whole", tmp_path / "again")
    runs = [file.relative_to(EXAMPLE) for file in EXAMPLE.rglob("metrics.jsonl")]
    assert len(runs) == 12
    for file in runs:
        assert (tmp_path / "again" / file).read_bytes() == (EXAMPLE / file).read_bytes(), file
    once, twice = notebook.study(str(EXAMPLE)), notebook.study(str(tmp_path / "again"))
    assert once.policies == twice.policies
    assert once.comparisons.equals(twice.comparisons)
    assert len(load_pools(tmp_path / "again" / "variance", "step-000000")) == 24
    assert set(METRICS) <= set(notebook.runs(str(tmp_path / "again")).metrics.columns) | {"train/step"}
    assert sum(file.stat().st_size for file in EXAMPLE.rglob("*")) < 1.3e6


def test_figures_and_tables_of_a_notebook() -> None:
    study = notebook.study(str(EXAMPLE))
    shown = notebook.show(ratio_forest(study, "start"))
    assert isinstance(shown.data, bytes)
    with Image.open(io.BytesIO(shown.data)) as picture:
        assert picture.width // 2 == shown.width
        assert picture.width > 1000
    rows = pl.DataFrame({"estimator": ["a"], "value": [1.23456], "low": [0.5], "high": [None], "count": [12345]})
    table = notebook.table(rows.cast({"high": pl.Float64}))
    assert [column.header for column in table.columns] == ["estimator", "value [95 %]", "count"]
    assert [list(column.cells) for column in table.columns] == [["a"], ["1.23 [0.5, open]"], ["12,345"]]
    assert list(notebook.policies(study).columns[0].cells) == ["start", "step 15", "step 30"]
