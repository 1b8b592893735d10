"""Runs read from folders, from W&B's offline files and from the service are one table."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from tracked import log_steps, wandb_file
from wandb_server import WandbServer

from analysis.runs import Runs, load
from opo.config.schema import CertificateConfig
from opo.errors import UserError
from opo.tracking.offline_file import read_run
from opo.train.mismatch import MismatchCheck, measure_mismatch

WANDB = Path(sys.executable).with_name("wandb")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tracked runs, one of them with a step that was corrected; neither is done."""
    folder = tmp_path_factory.mktemp("study")
    sampled, mask = torch.tensor([[-1.0, -2.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    for name, gap in (("a", 0.0), ("b", 0.5)):
        log_steps(folder / name, "off", range(1, 2))
        check = MismatchCheck.open(folder / name, CertificateConfig("correct"))
        check.check(1, {0}, 0, measure_mismatch(sampled, sampled + gap, mask))
        log_steps(folder / name, "offline", range(2, 5))
    return folder


def same(found: Runs, expected: Runs) -> None:
    assert_frame_equal(found.metrics.sort("run", "step"), expected.metrics.sort("run", "step"))
    assert_frame_equal(found.runs.drop("path").sort("run"), expected.runs.drop("path").sort("run"))


def test_folders_offline_files_and_the_service_give_the_same_table(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(study)
    assert expected.runs["on_policy"].to_list() == ["exact", "corrected in 1 of 1 steps"]
    assert expected.metrics["train/reward_mean"].to_list() == [step / 7 for step in range(1, 5)] * 2
    files = [wandb_file(study / name) for name in ("a", "b")]
    same(load(*files), expected)
    same(load(study / "a" / "wandb", files[1].parent), expected)
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        for file in files:
            subprocess.run([WANDB, "sync", file.parent], check=True, capture_output=True, cwd=study)
        same(load("wandb:me/opo/s"), expected)
        same(load("wandb:me/opo"), expected)
        with pytest.raises(UserError, match="wandb:me/opo/other: no training is here"):
            load("wandb:me/opo/other")
        server.refuses = True
        with pytest.raises(UserError, match="wandb:me/opo: "):
            load("wandb:me/opo")
    with pytest.raises(UserError, match="give wandb:ENTITY/PROJECT"):
        load("wandb:opo")


def test_rows_that_were_uploaded_twice_count_once(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(study / "a")
    from analysis.runs import places

    def twice(file: Path) -> object:
        run = read_run(file)
        run.rows += run.rows
        return run

    monkeypatch.setattr(places, "read_run", twice)
    same(load(wandb_file(study / "a")), expected)


def test_the_reader_agrees_with_wandbs_own(study: Path) -> None:
    """`wandb leet inspect` prints every record of an offline file; the rows are the same, number for number."""
    file = wandb_file(study / "b")
    printed = subprocess.run(
        [WANDB, "leet", "inspect", "--json", file], check=True, capture_output=True, text=True
    ).stdout
    lines = [json.loads(line) for line in printed.splitlines()]
    rows = [line["history"]["item"] for line in lines if line["type"] == "history"]
    assert len(rows) == 4
    assert [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows] == read_run(file).rows
    config = next(line["run"]["config"]["update"] for line in lines if line["type"] == "run")
    assert {key: value for key, value in config.items() if key != "_wandb"} == read_run(file).config


def test_a_file_that_is_torn_or_another_is_read_as_far_as_it_goes(study: Path, tmp_path: Path) -> None:
    whole = wandb_file(study / "a").read_bytes()
    torn = tmp_path / "run-torn.wandb"
    torn.write_bytes(whole[: len(whole) * 3 // 4])
    rows = read_run(torn).rows
    assert rows == read_run(wandb_file(study / "a")).rows[: len(rows)]
    assert read_run(torn).exit_code is None
    torn.write_bytes(b"SQLite format 3\x00")
    with pytest.raises(UserError, match="is not an offline file of W&B"):
        load(torn)
    torn.write_bytes(whole[:7])
    with pytest.raises(UserError, match="no training is here"):
        load(torn)
    assert isinstance(load(study).metrics, pl.DataFrame)
