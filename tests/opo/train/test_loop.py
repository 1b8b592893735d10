"""The loop end to end on a small policy: what a run leaves, that a killed one ends as if nothing had happened, how it is refused."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from run_folders import command, rows
from safetensors.torch import load_file

from opo.tracking import METRICS
from opo.train.mismatch import FILE


def train(folder: Path, *overrides: str, status: int = 0) -> str:
    done = subprocess.run(command(folder, *overrides), capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (last,) = sorted((folder / "checkpoints").glob("step-*"))[-1:]
    return load_file(last / "policy" / "model.safetensors") | load_file(last / "trainer.safetensors")


def test_a_run_leaves_what_is_promised(tmp_path):
    folder = tmp_path / "run"
    options = ("steps=4", "evaluate.every=2", "evaluate.num_prompts=4", "tracking=off", "tracking.completions_every=2")
    train(folder, *options)
    assert {p.name for p in folder.iterdir()} >= {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "rollouts",
        "checkpoints",
        "DONE",
    }
    logged = rows(folder)
    assert [row["train/step"] for row in logged] == [1, 2, 3, 4]
    for row in logged:
        assert set(row) <= set(METRICS)
        for key in (
            "train/reward_mean",
            "train/grad_norm",
            "train/entropy_mean_nats",
            "train/kl_init_nats",
            "length/tokens_mean",
        ):
            assert key in row
        assert row["mismatch/logprob_abs_mean_nats"] < 1e-5
        assert row["train/ratio_max"] == 1.0
        assert row["train/entropy_sampled_nats"] == pytest.approx(row["train/entropy_mean_nats"], abs=0.2)
    assert "eval/reward_mean" in logged[1]
    assert "eval/reward_mean" not in logged[0]
    assert logged[0]["train/kl_init_nats"] == pytest.approx(0, abs=1e-9)
    assert logged[3]["train/kl_init_nats"] > 0
    train(folder, *options)
    assert rows(folder) == logged  # a finished run is recognised and not repeated


@pytest.mark.parametrize("algo", ["opo", "ppo"])
def test_two_kills_change_nothing(tmp_path, algo):
    """SIGKILL twice at whatever moment; metrics and weights end bitwise equal to the uninterrupted run's."""
    options = ["steps=10", f"algo={algo}", "checkpoint.every=2", "tracking=off", "optim.schedule=cosine"]
    if algo == "ppo":
        options += ["algo.updates_per_rollout=4", "algo.minibatches=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole, *options)
    for after in (3, 6):
        process = subprocess.Popen(command(killed, *options), stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 120
        while (
            len((killed / "metrics.jsonl").read_text().splitlines() if (killed / "metrics.jsonl").exists() else [])
            < after
        ):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (killed / "DONE").exists()
    train(killed, *options)
    assert rows(killed) == rows(whole)
    before, after = weights(whole), weights(killed)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_sigterm_saves_and_leaves(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(folder, "steps=500", "tracking=off", "checkpoint.every=0"), stderr=subprocess.PIPE, text=True
    )
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        time.sleep(0.02)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(stderr.strip().splitlines()) == 1
    assert "stopped by SIGTERM" in stderr
    steps = len(rows(folder))
    assert (folder / "checkpoints" / f"step-{steps:06d}" / "manifest.json").exists()


def test_a_folder_made_with_another_config_is_refused_by_name(tmp_path):
    folder = tmp_path / "run"
    train(folder, "steps=1", "tracking=off")
    stderr = train(folder, "steps=1", "tracking=off", "optim.beta1=0.8", status=2)
    assert "optim.beta1" in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_a_learning_rate_of_zero_moves_nothing(tmp_path):
    """Log-probabilities stay where they are: the KL to the start is that of sampler against trainer, rounding alone."""
    folder = tmp_path / "run"
    train(folder, "steps=3", "tracking=off", "optim.learning_rate=0")
    assert all(abs(row["train/kl_init_nats"]) < 1e-9 for row in rows(folder))


def test_products_in_half_precision_are_stopped_or_corrected_and_marked(tmp_path):
    """Sampler and trainer round differently, on some processors by 1e-7 nats alone: a real breach, met in both ways that a run may choose."""
    options = ("steps=2", "tracking=off", "tracking.completions_every=1", "model.compute=bfloat16")
    options += ("certificate.logprob_abs_mean_nats=1e-9",)
    stderr = train(tmp_path / "stopped", *options, status=1)
    assert "step 1 is not exactly on-policy: mean log-probability difference" in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert rows(tmp_path / "stopped") == []
    train(tmp_path / "corrected", *options, "certificate.on_breach=correct")
    assert [row["mismatch/corrected"] for row in rows(tmp_path / "corrected")] == [1.0, 1.0]
    record = json.loads((tmp_path / "corrected" / FILE).read_text())
    assert (record["corrected"], list(record["breaches"])) == (True, ["1", "2"])
    for step in (1, 2):
        table = pl.read_parquet(tmp_path / "corrected" / "rollouts" / f"step-{step:06d}.parquet")
        assert table["version"].to_list() == [step - 1] * 16


def test_a_run_refused_before_its_first_step_leaves_no_folder(tmp_path):
    folder = tmp_path / "run"
    stderr = train(folder, "rollout.max_new_tokens=2000", status=2)
    assert "rollout.max_new_tokens=2000: prompt 0 of the train stream has" in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert not folder.exists()


def test_gradients_that_are_not_finite_stop_the_run_with_the_batch_on_disk(tmp_path):
    folder = tmp_path / "run"
    stderr = train(
        folder,
        "steps=6",
        "tracking=off",
        "optim=sgd",
        "optim.learning_rate=1.0",
        "optim.max_grad_norm=0",
        "algo.entropy_coef=1000000.0",
        status=1,
    )
    assert "not finite" in stderr
    assert len(stderr.strip().splitlines()) == 1
    (dump,) = folder.glob("nonfinite-step-*.safetensors")
    assert {"tokens", "rewards", "weights", "logprobs"} <= set(load_file(dump))
