"""W&B online and `wandb sync`, with the real client against a stand-in server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tracked import log_steps, rows, scalars, wandb_file
from wandb_file import history
from wandb_server import WandbServer


@pytest.fixture
def server(monkeypatch):
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield server


def test_online_all_rows_arrive_and_a_resume_sends_those_that_are_missing(tmp_path, server, capfd):
    for name in ("a", "b"):
        log_steps(tmp_path / name, "online", range(1, 4))
    log_steps(tmp_path / "a", "online", range(3, 7))
    assert len(server.runs) == 2
    for name, steps in (("a", 6), ("b", 3)):
        run = server.runs[json.loads((tmp_path / name / "run.json").read_text())["wandb_run_id"]]
        assert scalars(run.rows) == rows(tmp_path / name)
        assert len(run.rows) == steps
        assert [row["completions"]["nrows"] for row in run.rows if "completions" in row][:2] == [2, 4]
        assert (run.about["displayName"], run.about["groupName"], run.about["jobType"]) == (name, "s", "train")
        assert run.exit_code == 0
    assert capfd.readouterr().err == ""


def test_an_offline_run_is_sent_by_wandb_sync(tmp_path, server):
    log_steps(tmp_path, "offline", range(1, 6))
    assert server.runs == {}
    wandb = Path(sys.executable).with_name("wandb")
    subprocess.run([wandb, "sync", wandb_file(tmp_path).parent], check=True, capture_output=True, cwd=tmp_path)
    (run,) = server.runs.values()
    assert scalars(run.rows) == rows(tmp_path)
    assert len(run.rows) == 5
    assert run.about["groupName"] == "s"


def test_a_run_that_is_refused_online_is_recorded_offline(tmp_path, server, monkeypatch, capfd):
    server.refuses = True
    log_steps(tmp_path, "online", range(1, 4))
    assert scalars(history(wandb_file(tmp_path))) == rows(tmp_path)
    said = capfd.readouterr().err
    assert said.startswith("W&B failed (")
    assert said.endswith("for `wandb sync`\n")
    assert said.count("\n") == 1


def test_a_run_that_was_synced_and_goes_on_is_synced_again_without_doubles(tmp_path, server):
    """W&B adds what it is sent to what it has, so the second record holds the steps that are new, and the summary of all."""
    wandb = Path(sys.executable).with_name("wandb")

    def sync() -> None:
        subprocess.run([wandb, "sync", wandb_file(tmp_path).parent], check=True, capture_output=True, cwd=tmp_path)

    log_steps(tmp_path, "offline", range(1, 6))
    sync()
    log_steps(tmp_path, "offline", range(4, 9))  # went on from the checkpoint of step 3
    log_steps(tmp_path, "offline", range(8, 10))  # and again, before the next sync
    assert [row["train/step"] for row in history(wandb_file(tmp_path))] == [6, 7, 8, 9]
    sync()
    (run,) = server.runs.values()
    assert scalars(run.rows) == rows(tmp_path)
    assert [row["_step"] for row in run.rows] == list(range(1, 10))
    summary = json.loads(run.summary)
    assert summary["train/reward_mean"] == {"last": 9 / 7, "max": 9 / 7}
    assert summary["train/updates"] == 9
    assert summary["completions"]["nrows"] == 2 * len(
        [1, 3, 5, 7, 9]
    )  # the table has the steps of the first record too
