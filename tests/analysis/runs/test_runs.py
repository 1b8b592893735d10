"""Run folders as tables, finished or going on."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from studies import write_run

from analysis.runs.groups import with_groups
from analysis.runs.load import LABELS, load
from opo.config.schema import CertificateConfig
from opo.errors import UserError
from opo.train.mismatch import MismatchCheck, measure_mismatch


def make_run(path: Path, algo: str, seed: int, rows: list[dict], tail: str = "", done: bool = False, **optim) -> None:
    config = {
        "algo": {"name": algo, "hyperparameters": {}},
        "task": {"name": "arithmetic"},
        "model": {"name": "tiny"},
        "optim": {"learning_rate": 0.1, "schedule": "constant"} | optim,
        "study": "s",
        "seed": seed,
        "steps": 2,
    }
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "run.json").write_text(json.dumps({"wandb_run_id": f"id{seed}"}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    if done:
        (path / "DONE").write_text("2\n")


def test_one_row_a_step_and_undefined_is_null(tmp_path):
    make_run(
        tmp_path / "s" / "b",
        "opo",
        1,
        [{"train/step": 1, "train/updates": 3}, {"train/step": 2, "eval/reward_mean": 0.5}],
        done=True,
    )
    make_run(
        tmp_path / "s" / "a",
        "grpo",
        0,
        [{"train/step": 1, "train/updates": 1.5}],
        tail='{"train/step": 2, "trai',
        learning_rate=0.2,
    )
    make_run(tmp_path / "new", "ppo", 2, [], schedule="cosine")
    (tmp_path / "s" / "report").mkdir()
    loaded = load(tmp_path)
    assert loaded.metrics.rows(named=True) == [
        {"run": run, "study": "s", "algo": algo, "task": "arithmetic", "model": "tiny", "seed": seed, "step": step}
        | metrics
        for run, algo, seed, step, metrics in (
            ("s/a", "grpo", 0, 1, {"eval/reward_mean": None, "train/step": 1.0, "train/updates": 1.5}),
            ("s/b", "opo", 1, 1, {"eval/reward_mean": None, "train/step": 1.0, "train/updates": 3.0}),
            ("s/b", "opo", 1, 2, {"eval/reward_mean": 0.5, "train/step": 2.0, "train/updates": None}),
        )
    ]
    runs = loaded.runs.select(
        "run", "steps", "steps_done", "done", "wandb_run_id", "optim.learning_rate", "optim.schedule"
    )
    assert runs.rows() == [
        ("new", 2, 0, False, "id2", 0.1, "cosine"),
        ("s/a", 2, 1, False, "id0", 0.2, "constant"),
        ("s/b", 2, 2, True, "id1", 0.1, "constant"),
    ]
    assert "algo.hyperparameters" not in loaded.runs.columns


def test_one_folder_that_has_just_begun(tmp_path):
    make_run(tmp_path / "a", "opo", 0, [])
    (tmp_path / "a" / "metrics.jsonl").unlink()
    loaded = load(tmp_path / "a", str(tmp_path / "a"))
    assert loaded.metrics.columns == [*LABELS, "step"]
    assert loaded.metrics.height == 0
    assert loaded.runs["run"].to_list() == ["a"]


def test_values_of_several_kinds_are_text(tmp_path):
    for seed, value in enumerate([None, 1, [1, 2]]):
        make_run(tmp_path / str(seed), "opo", seed, [], targets=value)
    assert load(tmp_path).runs["optim.targets"].to_list() == [None, "1", "[1, 2]"]
    assert load(tmp_path / "0", tmp_path / "1").runs["optim.targets"].dtype == pl.Int64


def test_where_there_is_no_run_is_said(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="no run is here"):
            load(path)


def test_a_damaged_row_is_named(tmp_path):
    make_run(tmp_path / "a", "opo", 0, [{"train/step": 1}], tail="[1]\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        load(tmp_path)


def test_runs_say_whether_they_were_exactly_on_policy(tmp_path: Path) -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    sampled = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    for name, gaps in {"exact": (0.0, 0.0), "corrected": (0.0, 0.5)}.items():
        certificate = MismatchCheck.open(write_run(tmp_path / name, "opo", 0, 0.0), CertificateConfig("correct"))
        for step, gap in enumerate(gaps, 1):
            certificate.check(step, {0}, 0, measure_mismatch(sampled, sampled + gap, mask))
    write_run(tmp_path / "none", "opo", 0, 0.0)
    found = {row["run"]: row["on_policy"] for row in load(tmp_path).runs.iter_rows(named=True)}
    assert found == {"exact": "exact", "corrected": "corrected in 1 of 2 steps", "none": "-"}


def test_runs_are_grouped_by_what_was_asked_for_and_not_by_what_came_of_it(tmp_path: Path) -> None:
    """Seeds of one configuration stay together, whatever their certificates say; other updates per rollout stay apart."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    sampled = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    for seed in range(3):
        certificate = MismatchCheck.open(
            write_run(tmp_path / f"opo-{seed}", "opo", seed, 0.0), CertificateConfig("correct")
        )
        for step in range(1, 4):
            certificate.check(step, {0}, 0, measure_mismatch(sampled, sampled + 0.5 * (step <= seed), mask))
        write_run(tmp_path / f"grpo-{seed}", "grpo", seed, 0.0)
        write_run(tmp_path / f"off-{seed}", "grpo", seed, 0.0, updates=4)
    runs = load(tmp_path)
    assert runs.runs["on_policy"].n_unique() > 3
    found = with_groups(runs).group_by("group", "role").agg(pl.col("seed").n_unique())
    assert {row[:2] for row in found.iter_rows()} == {
        ("opo", "opo"),
        ("grpo", "grpo"),
        ("grpo (4 updates)", "off_policy"),
    }
    assert found["seed"].to_list() == [3, 3, 3]


def test_off_policy_runs_alone_do_not_pass_for_on_policy_ones(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / str(seed), "grpo", seed, 0.0, updates=4)
    found = with_groups(load(tmp_path))
    assert set(found.select("group", "role").iter_rows()) == {("grpo (4 updates)", "off_policy")}


def test_two_configurations_never_share_a_label_or_a_role(tmp_path: Path) -> None:
    """What a short label leaves out is in the long one: here the number of minibatches."""
    for minibatches in (1, 2):
        folder = write_run(tmp_path / f"{minibatches}", "grpo", 0, 0.0, updates=2)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["algo"]["minibatches"] = minibatches
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    found = with_groups(load(tmp_path))
    assert found["group"].n_unique() == 2
    assert found["role"].null_count() == found.height
