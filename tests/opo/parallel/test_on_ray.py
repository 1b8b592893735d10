"""Ranks that a Ray cluster starts: one is killed, and all is as in one process; what is refused ends at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import PROJECT
from run_folders import SMALL, command, holder, rows

GIVEN = [*SMALL, "tracking=off", "steps=30", "checkpoint.every=2"]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(PROJECT),
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",  # else 15, which a busy machine starves
}


def on_ray(*overrides: str) -> subprocess.Popen[str]:
    arguments = ["--address", "local", "--ranks", "2", "train", *GIVEN, *overrides]
    return subprocess.Popen(
        [sys.executable, "-m", "opo.cli.on_ray", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.prove
def test_a_rank_that_is_killed_is_started_again_by_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    job, killed = on_ray(f"hydra.run.dir={two}"), False
    while job.poll() is None and not killed:
        if (two / "metrics.jsonl").exists() and len(rows(two)) >= 3 and (process := holder(two)):
            os.kill(process, signal.SIGKILL)
            killed = True
        time.sleep(0.05)
    out, err = job.communicate(timeout=250)
    assert (job.returncode, killed) == (0, True), out + err
    assert len(json.loads((two / "run.json").read_text())["resumed"]) == 1
    subprocess.run([*command(one), *GIVEN], env=ENVIRONMENT, check=True)
    first, alone = rows(two), rows(one)
    assert [row["train/step"] for row in first] == [row["train/step"] for row in alone] == list(range(1, 31))
    for key in ("train/reward_mean", "length/tokens_mean", "train/grad_norm"):
        assert first[0][key] == pytest.approx(alone[0][key], rel=1e-4), key
    assert not list((tmp_path / "runs").glob(".ray*"))
    refused = on_ray(f"hydra.run.dir={two}", "optim.learning_rate=0.5")  # met by the ranks, and not tried again
    _, err = refused.communicate(timeout=250)
    assert refused.returncode == 2
    assert err.splitlines()[-1].startswith(f"optim.learning_rate: {two} was made with")


def test_what_is_refused_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (["--ranks", "2", "train", "stepz=3"], "stepz: unknown key"),
        (["--ranks", "0", "train"], "at least one rank"),
        (["--ranks", "2", "train", "-m", "seed=0,1"], "takes one job"),
    ):
        started = [sys.executable, "-m", "opo.cli.on_ray", *arguments]
        ended = subprocess.run(started, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert said in ended.stderr
        assert ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
