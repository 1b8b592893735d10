"""Jobs on the launchers of conf/hydra/launcher: ranks of submitit, Slurm's batch script, Ray with a job killed, shards of a study."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from run_folders import SMALL, holder, rows

from opo.cli import main

PROJECT = Path(__file__).parents[3]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(PROJECT),
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",  # else 15, which a busy machine starves
}
LOCAL = ["hydra.launcher.ray.init.address=local", "hydra.launcher.ray.init.num_cpus=2"]
TRAIN = ["train", "-m", *SMALL, "tracking=off", "steps=2", "study=s"]
STUDY = [
    "variance",
    *(line for line in SMALL if not line.startswith("rollout.")),
    "model=tiny",
    "rollout.max_new_tokens=8",
    "prompts=4",
    "responses=8",
    "group_sizes=[2,4]",
    "num_bootstrap=100",
]


def opo(*arguments: str) -> int:
    """`opo ARGUMENTS` in this process."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "runs" / "s").iterdir())


def test_two_tasks_of_submitit_are_one_run_of_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert opo(*TRAIN, "seed=3", "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2") == 0
    assert opo(*TRAIN, "seed=3", "study=alone") == 0
    (ranks,), (alone,) = runs(tmp_path), (tmp_path / "runs" / "alone").iterdir()
    two, one = rows(ranks), rows(alone)
    assert [row["train/step"] for row in two] == [1, 2]
    for key in ("train/reward_mean", "length/tokens_mean", "train/entropy_mean_nats", "train/grad_norm"):
        assert two[0][key] == pytest.approx(one[0][key], rel=1e-4), key
    assert json.loads((ranks / "metrics.jsonl").read_text().splitlines()[-1])["time/ranks_wait_s"] > 0


def test_jobs_that_a_cluster_starts_elsewhere_work_where_the_command_was_given(tmp_path: Path, monkeypatch) -> None:
    work, elsewhere, seen = tmp_path / "work", tmp_path / "elsewhere", []
    work.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(work)

    def train(config: dict[str, Any], folder: Path) -> None:
        seen.append((Path.cwd(), folder))
        os.chdir(elsewhere)  # where the next job finds itself

    monkeypatch.setattr("opo.cli.train.train", train)
    assert opo("train", "-m", "seed=0,1") == 0
    runs = work / "runs" / "default"
    assert seen == [(work, runs / "opo-arithmetic-s0"), (work, runs / "opo-arithmetic-s1")]
    assert not list(elsewhere.iterdir())


SBATCH = """#!/bin/bash
cp "$1" "$STAND_IN/script.sh"
[ -z "$REFUSES" ] || { echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1; }
echo "Submitted batch job 77"
"""
SACCT = """#!/bin/bash
printf 'JobID|State|NodeList\\n77_0|NODE_FAIL|a\\n77_1|NODE_FAIL|a\\n'
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for sbatch, srun and sacct: the script is kept, and no job ever runs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "sacct": SACCT, "srun": "#!/bin/bash\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


RUNS = {
    "sbatch": """#!/bin/bash
cp "$1" "$STAND_IN/script.sh"
SLURM_JOB_ID=77 bash "$STAND_IN/script.sh" > "$STAND_IN/log" 2>&1 &
echo "Submitted batch job 77"
""",
    "srun": """#!/bin/bash
shift 5  # --unbuffered --output FILE --error FILE
export SLURM_NTASKS=2 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_JOB_NODELIST=localhost
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & done
wait
""",
    "sacct": "#!/bin/bash\nprintf 'JobID|State|NodeList\\n77|RUNNING|localhost\\n'\n",
}


@pytest.mark.prove
def test_the_batch_script_starts_one_run_of_two_ranks(slurm: Path) -> None:
    """Stand-ins that run it, with the variables that Slurm sets for the tasks of a job."""
    for name, text in RUNS.items():
        (slurm / name).write_text(text)
    given = ["seed=3", "hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2"]
    assert opo(*TRAIN, *given) == 0, (slurm / "log").read_text()
    (run,) = Path("runs", "s").iterdir()
    assert [row["train/step"] for row in rows(run)] == [1, 2]
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["time/ranks_wait_s"] > 0


def test_the_batch_script_of_slurm(slurm: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """What is asked of Slurm, and what is said where it refuses a job or loses it before it began."""
    asked = ["partition=gpu", "tasks_per_node=8", "gpus_per_node=8", "nodes=2", "timeout_min=90", "array_parallelism=1"]
    given = [*TRAIN, "seed=0,1", "hydra/launcher=submitit_slurm", *(f"hydra.launcher.{line}" for line in asked)]
    given += ["hydra.launcher.setup=['module load cuda']", "+hydra.launcher.additional_parameters.mail-user=me@here"]
    assert opo(*given) == 1
    error = capfd.readouterr().err
    assert "Job 77_0 (task: 0)" in error
    assert "NODE_FAIL" in error
    assert error.count("\n") == 1
    lines = (slurm / "script.sh").read_text().splitlines()
    flags = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert {"array=0-1%1", "nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "partition=gpu", "time=90"} <= flags
    assert {"signal=USR2@300", "mail-user=me@here", "job-name=train", "open-mode=append"} <= flags
    assert lines.index("module load cuda") < lines.index("export SUBMITIT_EXECUTOR=slurm") == len(lines) - 2
    assert lines[-1].startswith("srun --unbuffered --output ")
    assert f"{sys.executable} -u -m submitit.core._submit {Path.cwd()}/runs/.submitit/%j" in lines[-1]
    monkeypatch.setenv("REFUSES", "1")
    assert opo(*given) == 2
    refusal = "sbatch: error: invalid partition specified: gpu\n"
    assert capfd.readouterr().err == f"{refusal}hydra/launcher=submitit_slurm: {refusal}"  # its own word, and ours
    (slurm / "srun").unlink()
    assert opo(*given) == 2
    assert "there is no srun here" in capfd.readouterr().err
    assert not list(Path("runs").glob(".jobs*"))


@pytest.mark.prove
def test_a_job_that_is_killed_on_ray_goes_on_as_if_nothing_had_been(tmp_path: Path, monkeypatch) -> None:
    """Two workers of a cluster on this machine; its first job's is killed after some steps."""
    monkeypatch.chdir(tmp_path)
    given = [*TRAIN, "steps=40", "checkpoint.every=2", "hydra/launcher=ray", *LOCAL]
    command = [sys.executable, "-m", "opo", *given, "seed=0,1"]
    sweep = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed: list[int] = []
    while sweep.poll() is None and not killed:
        started = [run for run in tmp_path.glob("runs/s/opo-arithmetic-s0*") if len(list(run.glob("*.jsonl")))]
        if started and len(rows(started[0])) >= 3 and (process := holder(started[0])):
            os.kill(process, signal.SIGKILL)
            killed.append(process)
        time.sleep(0.05)
    out, err = sweep.communicate(timeout=200)
    assert (sweep.returncode, len(killed)) == (0, 1), out + err
    lost, other = runs(tmp_path)
    assert (lost / "DONE").exists()
    assert (other / "DONE").exists()
    assert len(json.loads((lost / "run.json").read_text())["resumed"]) == 1
    assert opo(*TRAIN, "steps=40", "checkpoint.every=2", "seed=0", "study=alone") == 0
    (alone,) = (tmp_path / "runs" / "alone").iterdir()
    assert rows(lost) == rows(alone)


SHARDED = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra.launcher.tasks_per_node=2"],
    "ray": LOCAL,
}


@pytest.mark.parametrize(
    "launcher", ["joblib", *(pytest.param(name, marks=pytest.mark.prove) for name in ("submitit_local", "ray"))]
)
def test_shards_of_a_study_are_merged_exactly(launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever measures which prompt: the tables and the numbers of result.json are those of one process."""
    monkeypatch.chdir(tmp_path)
    assert opo(*STUDY, "hydra.run.dir=whole") == 0
    command = [sys.executable, "-m", "opo", *STUDY, "-m", "shard=0/2,1/2", f"hydra/launcher={launcher}"]
    subprocess.run([*command, *SHARDED[launcher]], env=ENVIRONMENT, check=True)
    whole, (cut,) = tmp_path / "whole", [path.parent for path in tmp_path.glob("runs/variance/*/result.json")]
    assert len(list((cut / "provenance").iterdir())) == (4 if launcher == "submitit_local" else 2)
    for name in ("variance", "prompts", "responses", "audit_terms"):
        assert pl.read_parquet(cut / f"{name}.parquet").equals(pl.read_parquet(whole / f"{name}.parquet")), name
    one, two = (json.loads((folder / "result.json").read_text()) for folder in (whole, cut))
    assert one.keys() == two.keys()
    for content in (one, two):
        del content["provenance"], content["sha256"]
    assert one == two
    assert "shard" not in yaml.safe_load((cut / "config.yaml").read_text())


def test_a_launcher_that_is_not_there_is_named_with_its_extra(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("opo.cli.launchers.find_spec", lambda name: None if name == "ray" else found(name))
    for given, said in (
        (["hydra/launcher=ray"], "hydra/launcher=ray: ray is not installed; install the extra ray"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=two"], "hydra.launcher.n_jobs=two: Value 'two'"),
        (["hydra/launcher=joblib", "hydra.launcher.jobs=2"], "hydra.launcher.jobs: unknown key"),
    ):
        assert opo(*TRAIN, "seed=0,1", *given) == 2
        error = capfd.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
