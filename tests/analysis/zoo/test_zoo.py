"""The zoo on a small policy: whole gradients of any row by the trainer's own path, rows that are added, the table and the page."""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra.core.hydra_config import HydraConfig
from run_folders import SMALL, rows

from analysis.commands.workers import train_in
from analysis.commands.zoo import conclude, remembered, run_folder
from analysis.report.gallery import kind, statement
from analysis.zoo.config import ZooConfig, load_config
from analysis.zoo.measure import REFERENCE, load_records, measure, record_files
from analysis.zoo.results import missed
from analysis.zoo.rows import all_rows, row_of
from opo.accounts import accounts
from opo.cli import take_apart
from opo.cli.compose import compose_job, composing
from opo.cli.launch import check
from opo.errors import UserError
from opo.system.records import read_json

ROWS = [
    "rloo",
    "group_mean",
    "grpo",
    "grpo 'algo.filter={name: curvature, limit_objective: 1e6, limit_policy: 1e6, renormalise: false}'",
    "grpo 'algo.regulariser={name: entropy_band, coef: 0.0}'",
    "rloo algo.shaper=running_moments",
    "ppo_max",
    "props",
    "remax",
    "opo algo.filter=best_worst",
]
SIZES = {"batches": 8, "prompts": 2, "group_size": 4, "replicates": 2, "memory_batches": 1, "seeds": [0], "tokens": 40}


def zoo_config(rows: list[str], **changes) -> ZooConfig:
    return ZooConfig(
        algorithms=rows,
        overrides=[*SMALL, "tracking=off", "reward.function=own_task:even_digits"],
        jobs=1,
        **(SIZES | changes),
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("zoo"), zoo_config(ROWS)
    measure(config, folder, "start", folder, 0, 1)
    return folder, config


def moments_of(measured, number: int) -> dict[str, np.ndarray]:
    folder, config = measured
    return load_records(config, folder, "start", [row.name for row in config.rows])[config.rows[number].name]


def test_leave_one_out_by_the_trainers_path_is_the_reference_itself(measured):
    rloo = moments_of(measured, 0)
    assert (np.abs(rloo["error"]) < 1e-9 * rloo["second"]).all()
    np.testing.assert_allclose(rloo["signal"], rloo["reference"], rtol=0, atol=1e-5 * rloo["second"].max())


def test_the_group_mean_is_a_multiple_of_it(measured):
    rloo, mean = moments_of(measured, 0), moments_of(measured, 1)
    np.testing.assert_allclose(mean["second"], (3 / 4) ** 2 * rloo["second"], rtol=1e-4)


@pytest.mark.parametrize("number", [3, 4])
def test_a_part_that_does_nothing_changes_nothing(measured, number):
    """A mask without limits, and an entropy term without weight, around GRPO."""
    plain, around = moments_of(measured, 2), moments_of(measured, number)
    for field in ("second", "signal", "cross"):
        np.testing.assert_allclose(around[field], plain[field], rtol=0, atol=1e-4 * plain["second"].max())


def test_other_parts_do_something(measured):
    plain = moments_of(measured, 0)
    for number in (5, 7, 9):
        assert not np.allclose(moments_of(measured, number)["second"], plain["second"], rtol=1e-3)


def test_what_is_measured_is_not_measured_again_but_another_key_is(measured):
    folder, config = measured
    file = record_files(config, folder, "start")[0]
    before = file.stat().st_mtime_ns
    measure(config, folder, "start", folder, 0, 1)
    assert file.stat().st_mtime_ns == before
    changed = replace(config, algorithms=["rloo algo.entropy_coef=0.1"])
    measure(replace(changed, batches=2), folder, "start", folder, 0, 1)
    record = read_json(file)
    assert {"rloo", "rloo + 0.1", REFERENCE} <= set(record)
    assert record["rloo"]["second"] != record["rloo + 0.1"]["second"]
    with pytest.raises(UserError, match="prompts=2, not 3"):
        record_files(replace(config, prompts=3), folder, "start")


def test_mid_training_fits_what_a_row_remembers_and_the_gallery_shows_all(tmp_path):
    config = zoo_config(["ppo_max", "rloo"], batches=2)
    train_in(tmp_path / "middle", row_of(["opo"]).training(config.overrides, 0, 20))
    for row in config.rows:
        train_in(run_folder(tmp_path, config, row, 0), row.training(config.overrides, 0, config.tokens))
        done = rows(run_folder(tmp_path, config, row, 0))
        assert 1 <= len(done) < 200  # it ended at its tokens, and says how many there were
        assert done[-1]["train/tokens"] >= config.tokens > (done[-2]["train/tokens"] if len(done) > 1 else 0)
    for policy in ("start", "middle"):
        measure(config, tmp_path, policy, tmp_path / "middle", 0, 1)
    page = conclude(config, tmp_path, remembered(config, tmp_path)).read_text()
    assert "ppo_max" in page
    known = page.count('">-</td>')
    one_more = zoo_config(["grpo"], batches=2)
    measure(one_more, tmp_path, "start", tmp_path / "middle", 0, 1)
    page = conclude(one_more, tmp_path, remembered(one_more, tmp_path)).read_text()
    assert page.count("<summary>grpo</summary>") == page.count("<summary>ppo_max</summary>") == 1
    assert page.count('">-</td>') >= known + 2  # grpo is not measured in mid-training


def test_the_experiment_trains_the_same_folders_in_a_sweep():
    invocation, _ = take_apart("train", ["experiment=zoo", "algo=opo,capo", "seed=1"])
    folders = []
    check(invocation, lambda values: folders.append((values["algo"]["name"], values["seed"], values["tokens"])))
    assert folders == [("opo", 1, 40_000), ("grpo", 1, 40_000)]
    with composing():
        job = compose_job("train", ["experiment=zoo", "algo=opo", "seed=1"])
        HydraConfig.instance().set_config(job)
        own, row = ZooConfig(), row_of(["opo"])
        assert job.hydra.sweep.subdir == f"zoo/{run_folder(Path(), own, row, 1)}"
        assert job.tokens == own.tokens
        assert "glob(*" in job.hydra.sweeper.params.algo


def test_rows_and_what_is_said_of_them():
    row = row_of(shlex.split("rloo algo.filter=curvature optim.learning_rate=0.1"))
    assert row.name == "rloo + curvature"
    assert statement(accounts()["rloo"], row) == "no: tokens of large steps are left out"
    kinds = {name: kind(accounts()[name], row_of([name])) for name in all_rows()}
    assert {kinds[name] for name in ("rloo", "reinforce", "p3o", "shrinkage", "remax")} == {"unbiased"}
    assert {kinds[name] for name in ("opo", "group_mean", "otb", "quantile")} == {"bias of order 1/G"}
    assert {kinds[name] for name in ("grpo", "capo", "epo", "pf_ppo", "ppo_max", "lipo")} == {"biased"}
    assert {kinds[name] for name in ("pkpo", "max_rl", "copg", "rlgf", "meow_tea_rloo")} == {"of another objective"}
    assert missed(1.0) == 0
    assert missed(0.6) == pytest.approx(0.8)
    assert missed(-0.2) == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"algorithms": ["grop"]}, "algorithms: grop is none of conf/algo (did you mean grpo"),
        ({"algorithms": ["opo", "opo"]}, "algorithms: opo is named twice"),
        ({"algorithms": ["opo algo.filter=bets"]}, "algo.filter=bets: not one of"),
        ({"seeds": [0, 0]}, "seeds=[0, 0]"),
        ({"batches": 1}, "batches=1: allowed is at least 2"),
        ({"overrides": ["steps=0"]}, "steps=0"),
    ],
)
def test_wrong_zoos_are_refused_in_one_line(values, said):
    with pytest.raises(UserError) as refused:
        load_config(values)
    assert str(refused.value).startswith(said)
