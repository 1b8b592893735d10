"""metrics.jsonl is the truth; W&B mirrors it, offline and online, and can be killed, hang or be absent without harm to a run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import psutil
import pytest
import yaml
from tracked import COMPLETION, log_steps, open_tracker, rows, scalars, wait_for, wandb_file
from wandb_file import history, records

from opo.run.metrics import METRICS, reproducible
from opo.tracking import COMPLETIONS

ROOT = Path(__file__).parents[3]


# ------------------------------------------------------------------------------------------------------- metrics.jsonl


def test_one_object_a_step_and_on_the_disk_at_once(tmp_path):
    with open_tracker(tmp_path) as tracker:
        for step in (1, 2):
            tracker.log(step, {"train/reward_mean": 0.1 * step, "time/step_s": 2.5})
            assert len(rows(tmp_path)) == step
    assert rows(tmp_path) == [
        {"train/step": 1, "train/reward_mean": 0.1, "time/step_s": 2.5},
        {"train/step": 2, "train/reward_mean": 0.2, "time/step_s": 2.5},
    ]
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"train/reward_mean": float("nan")}, r"'train/reward_mean' at step 1 is nan"),
        ({"train/grad_norm": float("-inf")}, r"'train/grad_norm' at step 1 is -inf"),
        ({"train/rewards_mean": 1.0}, r"'train/rewards_mean' at step 1 is not in opo\.run\.metrics\.METRICS"),
        ({"train/step": 2}, r"'train/step' is 2 in the row of step 1"),
    ],
)
def test_what_is_undocumented_or_undefined_is_refused(tmp_path, metrics, said):
    with open_tracker(tmp_path) as tracker:
        with pytest.raises(ValueError, match=said):
            tracker.log(1, {"train/updates": 1} | metrics)
        assert rows(tmp_path) == []


def test_a_step_is_logged_once_also_after_a_resume(tmp_path):
    with open_tracker(tmp_path) as tracker:
        tracker.log(1, {})
        tracker.log(3, {})
        for step in (3, 2):
            with pytest.raises(ValueError, match=f"step {step} has a row"):
                tracker.log(step, {})
    with open_tracker(tmp_path) as tracker:
        with pytest.raises(ValueError, match="step 3 has a row"):
            tracker.log(3, {})
        tracker.log(4, {})
    assert [row["train/step"] for row in rows(tmp_path)] == [1, 3, 4]


def test_the_table_of_metrics_says_unit_and_meaning():
    for name, metric in METRICS.items():
        namespace, _, leaf = name.partition("/")
        assert namespace.islower(), name
        assert leaf, name
        assert metric.unit, name
        assert len(metric.description) > 10, name
    suffixes = {
        "_s": "s",
        "_nats": "nats",
        "_mib": "MiB",
        "tokens_per_s": "tokens/s",
        "_fraction": "fraction",
        "_count": "responses",
    }
    for name, metric in METRICS.items():
        for suffix, unit in suffixes.items():
            if name.endswith(suffix) and not (suffix == "_s" and name.endswith("per_s")):
                assert metric.unit.startswith(unit), name
    varying = {name for name in METRICS if not reproducible(name)}
    assert varying == {n for n in METRICS if n.startswith(("time/", "memory/"))} | {
        "rollout/tokens_per_s",
        "update/tokens_per_s",
    }


def test_completions_are_kept_by_step(tmp_path):
    with open_tracker(tmp_path) as tracker:
        tracker.completions(1, [COMPLETION, {"response": "", "reward": None, "unscorable": "timed out"}])
        tracker.completions(2, [{"reward": None}])  # a column of nulls alone keeps its type
        tracker.log(2, {})
        with pytest.raises(ValueError, match="log completions first"):
            tracker.completions(2, [COMPLETION])
        with pytest.raises(ValueError, match="column 'rewards'; allowed are prompt_index, "):
            tracker.completions(3, [{"rewards": 1.0}])
    table = pl.read_parquet(tmp_path / "rollouts" / "*.parquet")
    assert table.columns == list(COMPLETIONS)
    assert table["reward"].to_list() == [1.0, None, None]
    assert table["unscorable"].to_list() == [None, "timed out", None]
    assert sorted(file.name for file in (tmp_path / "rollouts").iterdir()) == [
        "step-000001.parquet",
        "step-000002.parquet",
    ]


def test_importing_tracking_is_cheap():
    program = "import sys, opo.tracking; print([m for m in ('wandb', 'torch', 'transformers', 'pyarrow') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True) == "[]\n"


# ------------------------------------------------------------------------------------------------------- W&B offline


def test_the_offline_record_is_the_run_and_a_resume_makes_it_anew(tmp_path):
    path = tmp_path / "opo-arithmetic-s0"
    log_steps(path, "offline", range(1, 6))
    first = wandb_file(path)
    log_steps(path, "offline", range(4, 9))  # went on from the checkpoint of step 3
    file = wandb_file(path)
    assert file.name == first.name
    assert file.parent != first.parent
    logged = history(file)
    assert scalars(logged) == rows(path)
    assert [row["train/step"] for row in logged] == list(range(1, 9))
    assert [row["completions.nrows"] for row in logged if "completions.nrows" in row] == [2, 4, 6, 8]

    (about,) = [record.run for record in records(file) if record.HasField("run")]
    assert (about.run_group, about.job_type, about.display_name) == ("s", "train", "opo-arithmetic-s0")
    assert list(about.tags) == ["opo", "arithmetic", "tiny", "on-policy"]
    assert about.run_id == json.loads((path / "run.json").read_text())["wandb_run_id"]
    config = {item.key: json.loads(item.value_json) for item in about.config.update if item.key != "_wandb"}
    assert config == yaml.safe_load((path / "config.yaml").read_text())
    steps = {
        r.metric.glob_name: r.metric.step_metric for r in records(file) if r.HasField("metric") and r.metric.glob_name
    }
    assert steps == {f"{name.partition('/')[0]}/*": "train/step" for name in METRICS}
    (code,) = [r.artifact for r in records(file) if r.HasField("artifact") and r.artifact.type == "code"]
    assert {entry.path for entry in code.manifest.contents} >= {
        "config.yaml",
        "run.json",
        "opo/tracking/__init__.py",
        "opo/algorithms/opo.py",
    }
    assert all(Path(entry.local_path).is_relative_to(path) for entry in code.manifest.contents)
    (ending,) = [r.exit for r in records(file) if r.HasField("exit")]
    assert ending.exit_code == 0


def mirrors() -> list[psutil.Process]:
    """Processes of this one that copy a run to W&B."""
    return [child for child in psutil.Process().children() if "opo.tracking.mirror" in command_of(child)]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended, if only just now
        return []


def test_rows_reach_the_record_while_a_run_goes_on_and_its_mirror_may_be_killed(tmp_path, capfd):
    """wandb alone would keep rows in memory for fifteen seconds."""
    with open_tracker(tmp_path, "offline") as tracker:
        tracker.log(1, {"train/updates": 1})
        wait_for(lambda: list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb")))
        wait_for(lambda: history(wandb_file(tmp_path)))
        (mirror,) = mirrors()
        os.killpg(mirror.pid, signal.SIGTERM)  # a scheduler's: the trainer saves and leaves, its mirror with it
        tracker.log(2, {"train/updates": 2})
        wait_for(lambda: len(history(wandb_file(tmp_path))) == 2, seconds=10)
        os.killpg(mirror.pid, signal.SIGKILL)
        wait_for(lambda: not mirrors())
        for step in (3, 4):
            tracker.log(step, {"train/updates": step})
    assert scalars(history(wandb_file(tmp_path))) == rows(tmp_path)[:2]
    assert [row["train/step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    said = capfd.readouterr().err
    assert said.count("W&B failed") == said.count("\n") == 1
    assert "metrics.jsonl goes on" in said


def test_when_the_trainer_is_killed_the_record_is_finished_and_says_so(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; import tracked as t\n"
        "with t.open_tracker(Path(sys.argv[1]), 'offline') as tracker:\n"
        "    [tracker.log(step, {'train/reward_mean': step / 7}) for step in range(1, 21)]; os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert len(rows(tmp_path)) == 20
    wait_for(lambda: list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb")))
    wait_for(lambda: [record for record in records(wandb_file(tmp_path)) if record.HasField("exit")])
    assert scalars(history(wandb_file(tmp_path))) == rows(tmp_path)
    assert [r.exit.exit_code for r in records(wandb_file(tmp_path)) if r.HasField("exit")] == [1]


def test_a_process_that_cannot_be_started_harms_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    log_steps(tmp_path / "run", "offline", range(1, 3))
    assert len(rows(tmp_path / "run")) == 2
    assert capfd.readouterr().err.startswith("W&B failed ([Errno 2] No such file")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise ModuleNotFoundError(\"No module named 'wandb'\")", "ModuleNotFoundError: No module named 'wandb'"),
        ("import time; time.sleep(3600)", "it did not end in time"),
        (
            "def __getattr__(name): raise OSError(28, 'No space left on device')",
            r"OSError: [Errno 28] No space left on device",
        ),
        ("import os; os._exit(3)", "see "),
    ],
    ids=["absent", "hanging", "broken", "dead"],
)
def test_a_wandb_that_does_not_work_harms_nothing(tmp_path, monkeypatch, capfd, module, reason):
    (tmp_path / "wandb.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    log_steps(tmp_path / "run", "offline", range(1, 4), finish_s=2.0 if "end in time" in reason else 60.0)
    assert [row["train/step"] for row in rows(tmp_path / "run")] == [1, 2, 3]
    said = capfd.readouterr().err
    assert said.startswith(f"W&B failed ({reason}")
    assert said.count("\n") == 1
