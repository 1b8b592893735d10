"""A sweep that is cut down in every way: readable at every moment, finished by the same command, no process left."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from scipy.stats import trim_mean

from analysis.commands.ranking import rank
from analysis.runs.states import run_states
from opo.run.hold import is_held

ALGORITHMS, SEEDS, STEPS = ("opo", "rloo", "grpo"), (0, 1, 2), 5
TINY = [
    f"steps={STEPS}", "study=s", "tracking=off", "checkpoint.every=1", "threads=1", "rollout.num_prompts=4",
    "rollout.group_size=4", "rollout.max_new_tokens=8", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
]  # fmt: skip


def is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return False


class Sweep:
    """`opo train -m` in a process of its own, and everything that it started."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.said = folder, folder / "said.txt"
        command = [sys.executable, "-m", "opo", "train", "-m", *TINY, *arguments]
        with self.said.open("w") as out:
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        self.seen: set[psutil.Process] = set()

    def workers(self) -> list[psutil.Process]:
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self.seen.update(children)
        return [child for child in children if is_worker(child)]

    def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            assert self.process.poll() is None, self.said.read_text()
            self.workers()
            self.readable()
            time.sleep(0.2)

    def readable(self) -> None:
        """Tables and ranking of the study can be made at any moment."""
        if any((self.folder / "runs" / "s").glob("*/config.yaml")):
            assert "damaged" not in {state.state for state in run_states(self.folder / "runs" / "s")}
            rank(self.folder / "runs" / "s")

    def end(self) -> tuple[int, str]:
        self.until_over()
        _, alive = psutil.wait_procs(list(self.seen), timeout=30)
        assert alive == []
        assert not any(is_held(folder) for folder in (self.folder / "runs" / "s").iterdir())
        assert not list((self.folder / "runs").glob(".jobs*"))
        return self.process.returncode, self.said.read_text()

    def until_over(self) -> None:
        while self.process.poll() is None:
            self.workers()
            self.readable()
            time.sleep(0.2)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    sweeps: list[Sweep] = []

    def start(*arguments: str) -> Sweep:
        sweeps.append(Sweep(tmp_path, *arguments))
        return sweeps[-1]

    yield start
    for sweep in sweeps:
        sweep.process.kill()


def rows(folder: Path) -> list[dict[str, float]]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def under_way(folder: Path) -> list[Path]:
    """Runs that have a step and are neither done nor failed."""
    over = ("DONE", "FAILED")
    return [run for run in (folder / "runs" / "s").glob("*") if rows(run) and not any((run / x).exists() for x in over)]


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_three_algorithms_and_seeds_with_a_crash_and_two_kills(tmp_path: Path, started: Callable[..., Sweep]) -> None:
    grid = ["algo=opo,rloo,grpo", "seed=0,1,2"]
    extra = "rollout.group_size=4-rollout.max_new_tokens=8-rollout.num_prompts=4"
    names = {f"{algo}-arithmetic-s{seed}-{extra}" for algo in ALGORITHMS for seed in SEEDS}
    crashing = tmp_path / "runs" / "s" / f"opo-arithmetic-s1-{extra}"
    crashing.mkdir(parents=True)
    (crashing / "checkpoints").symlink_to("/nowhere/checkpoints")  # a disk that is not mounted

    sweep = started(*grid)
    sweep.until(lambda: "FAILED opo-arithmetic-s1" in sweep.said.read_text() and len(sweep.workers()) == 2)
    sweep.until(lambda: bool(under_way(tmp_path)))
    busy = max(sweep.workers(), key=lambda worker: worker.cpu_percent(0.5))
    busy.kill()
    sweep.until(lambda: "SIGKILL" in sweep.said.read_text())
    done = len(list((tmp_path / "runs" / "s").glob("*/DONE")))
    sweep.until(lambda: len(list((tmp_path / "runs" / "s").glob("*/DONE"))) > done and bool(under_way(tmp_path)))
    sweep.process.kill()
    status, said = sweep.end()
    assert status == -signal.SIGKILL
    assert said.count("FAILED") == 2
    assert {state.state for state in run_states(tmp_path / "runs" / "s")} >= {"done", "failed", "stopped"}

    whole = {
        file: file.read_bytes() for file in tmp_path.glob("runs/s/*/metrics.jsonl") if (file.parent / "DONE").exists()
    }
    status, said = started(*grid).end()
    assert status == 1
    assert said.count("FAILED") == 1
    assert f"1 failed:\n  {crashing.name}  " in said
    assert "checkpoints: File exists" in said
    assert {state.run for state in run_states(tmp_path / "runs" / "s") if state.state == "done"} == names - {
        crashing.name
    }
    assert "left out (failed)" in said

    shutil.rmtree(crashing)
    status, said = started(*grid).end()
    assert status == 0
    assert {file: file.read_bytes() for file in whole} == whole
    assert {path.parent.name for path in tmp_path.glob("runs/s/*/DONE")} == names
    assert said.rstrip().endswith("opo report path=runs/s")

    found = rank(tmp_path / "runs" / "s")
    assert found is not None
    assert found.left_out == {}
    last = {name: rows(tmp_path / "runs" / "s" / name) for name in names}
    assert all([row["train/step"] for row in table] == list(range(1, STEPS + 1)) for table in last.values())
    tokens = min(table[-1]["train/tokens"] for table in last.values())
    ends = {
        name: [row for row in table if row["train/tokens"] <= tokens][-1]["train/reward_mean"]
        for name, table in last.items()
    }
    for row in found.rows:
        mine = [ends[f"{row.name}-arithmetic-s{seed}-{extra}"] for seed in SEEDS]
        assert row.score == pytest.approx(trim_mean(mine, 0.25))
        assert row.interval == pytest.approx((np.min(mine), np.max(mine)))
        assert row.seeds == 3


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_sigterm_lets_every_running_job_save_and_starts_no_other(tmp_path: Path, started: Callable[..., Sweep]) -> None:
    sweep = started("seed=0,1,2", "steps=500")
    sweep.until(lambda: len(under_way(tmp_path)) == 2)
    sweep.process.terminate()
    status, said = sweep.end()
    assert status == 1
    assert said.count("STOPPED opo-arithmetic") == 2
    assert said.rstrip().endswith("the sweep ends here, and the same command does its other jobs")
    states = run_states(tmp_path / "runs" / "s")
    assert [state.state for state in states] == ["stopped", "stopped"]
    for run in under_way(tmp_path):
        assert (run / "checkpoints" / f"step-{len(rows(run)):06d}").is_dir()
