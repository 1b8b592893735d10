"""Run folders: made once, recognised, refused, held by one process, cut back to a checkpoint."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml

from opo.errors import UserError
from opo.run.checkpoint import save_checkpoint
from opo.run.folder import RunFolder
from opo.run.provenance import git_state

CONFIG = {
    "algo": {"name": "opo", "kl_coef": 0.0, "hyperparameters": {}},
    "task": {"name": "arithmetic", "seed": 3},
    "optim": {"learning_rate": 3e-4, "schedule": "constant"},
    "tracking": {"mode": "offline"},
    "checkpoint": {"every": 25},
    "steps": 10,
    "seed": 7,
    "study": "default",
    "device": "cpu",
    "threads": 1,
    "betas": (0.9, 1e-08),
}


def changed(key: str, value) -> dict:
    """CONFIG with one dotted key replaced."""
    config = copy.deepcopy(CONFIG)
    *parents, leaf = key.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[leaf] = value
    return config


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def write_rows(path: Path, steps, tail: str = "") -> None:
    lines = "".join(json.dumps({"train/step": s, "train/reward_mean": s / 7}) + "\n" for s in steps)
    (path / "metrics.jsonl").write_text(lines + tail)


def test_a_new_folder_says_what_replays_it(tmp_path):
    folder = RunFolder.open(tmp_path / "a" / "b", CONFIG)
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == {**CONFIG, "betas": [0.9, 1e-08]}
    record = json.loads((folder.path / "run.json").read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["transformers"] == metadata.version("transformers")
    assert record["seeds"] == {"task.seed": 3, "seed": 7}
    assert record["device"]["chosen"] == "cpu"
    assert record["device"]["threads"] == 1
    assert record["wandb_run_id"] == folder.wandb_id
    assert "resumed" not in record
    assert not folder.done
    assert folder.latest_checkpoint() is None


def test_the_state_of_the_code_is_kept(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    assert git_state(tmp_path) is None
    git("init", "-q")
    assert git_state(tmp_path) is None  # a repository without a commit
    (tmp_path / "a.txt").write_text("one\n")
    git("add", "a.txt")
    git("commit", "-q", "-m", "first")
    (tmp_path / "a.txt").write_text("two\n")
    (tmp_path / "new.txt").write_text("three\n")
    (tmp_path / "below").mkdir()
    state = git_state(tmp_path / "below")
    assert state is not None
    assert state["commit"] == git("rev-parse", "HEAD").strip()
    assert "-one\n+two\n" in state["diff"]
    assert [Path(name).name for name in state["untracked"]] == ["new.txt"]


def test_the_same_config_opens_the_same_run(tmp_path):
    first = RunFolder.open(tmp_path, CONFIG)
    with first.held():
        pass
    second = RunFolder.open(tmp_path, copy.deepcopy(CONFIG))
    assert second.wandb_id == first.wandb_id
    assert len(json.loads((tmp_path / "run.json").read_text())["resumed"]) == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 8, "seed: .* was made with 7 and this run has 8"),
        ("algo.name", "grpo", r"algo\.name: .* was made with 'opo' and this run has 'grpo'"),
        ("optim.learning_rate", 1e-3, r"optim\.learning_rate: .* was made with 0\.0003 and this run has 0\.001"),
        (
            "algo.hyperparameters",
            {"clip": 0.2},
            r"algo\.hyperparameters\.clip: .* was made with absent and this run has 0\.2",
        ),
        ("algo.clip", 0.2, r"algo\.clip: .* was made with absent and this run has 0\.2"),
        ("steps", 9, "steps: .* was made with 10 and this run has 9; steps may only grow"),
    ],
)
def test_another_config_is_refused_by_its_first_key(tmp_path, key, value, said):
    RunFolder.open(tmp_path, CONFIG)
    before = (tmp_path / "config.yaml").read_text(), (tmp_path / "run.json").read_text()
    with pytest.raises(UserError, match=f"^{said}") as error:
        RunFolder.open(tmp_path, changed(key, value))
    assert "\n" not in str(error.value)
    assert ((tmp_path / "config.yaml").read_text(), (tmp_path / "run.json").read_text()) == before


def test_a_run_goes_on_with_the_data_and_the_reward_that_it_began_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1"}\n')
    (tmp_path / "kept_reward.py").write_text("def score(prompt, response): return 1.0\n")
    config = CONFIG | {
        "task": {"name": "file", "path": "rows.jsonl"},
        "reward": {"function": ["kept_reward:score"], "weights": None},
    }
    for done in (False, True):
        with (folder := RunFolder.open(tmp_path / "run", config)).held():
            pass
        for name in ("rows.jsonl", "kept_reward.py"):
            before = (tmp_path / name).read_text()
            (tmp_path / name).write_text(before + "\n")
            with pytest.raises(
                UserError, match=rf"{name}: has changed since the run in .*run began; put the old one back"
            ):
                RunFolder.open(tmp_path / "run", config)
            (tmp_path / name).write_text(before)
        if not done:
            folder.finish(config["steps"])


def test_of_several_keys_the_first_is_named_and_a_lost_one_counts(tmp_path):
    RunFolder.open(tmp_path, CONFIG)
    config = changed("seed", 8)
    del config["algo"]["kl_coef"]
    with pytest.raises(UserError, match=r"^seed"):
        RunFolder.open(tmp_path, config)
    config["seed"] = 7
    with pytest.raises(UserError, match=r"^algo\.kl_coef: .* made with 0\.0 and this run has absent"):
        RunFolder.open(tmp_path, config)


@pytest.mark.parametrize(
    ("key", "value"), [("tracking.mode", "off"), ("checkpoint.every", 1), ("study", "b"), ("steps", 20)]
)
def test_keys_that_say_nothing_about_what_is_trained_may_differ(tmp_path, key, value):
    RunFolder.open(tmp_path, CONFIG)
    config = changed(key, value)
    RunFolder.open(tmp_path, config)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {**config, "betas": [0.9, 1e-08]}


def test_steps_do_not_grow_under_a_schedule_that_depends_on_them(tmp_path):
    config = changed("optim.schedule", "cosine")
    RunFolder.open(tmp_path, config)
    RunFolder.open(tmp_path, config)
    with pytest.raises(UserError, match=r"^steps: .*optim\.schedule=constant, and here it is cosine"):
        RunFolder.open(tmp_path, {**config, "steps": 20})


def test_a_finished_run_is_recognised_and_left_alone(tmp_path):
    folder = RunFolder.open(tmp_path, CONFIG)
    folder.finish(CONFIG["steps"])
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    again = RunFolder.open(tmp_path, changed("tracking.mode", "off"))
    assert again.done
    assert again.wandb_id == folder.wandb_id
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_finished_run_of_more_steps_is_not_finished(tmp_path):
    RunFolder.open(tmp_path, CONFIG).finish(CONFIG["steps"])
    save_checkpoint(tmp_path / "checkpoints", CONFIG["steps"], lambda to: None, {}, {})
    longer = RunFolder.open(tmp_path, changed("steps", 20))
    assert not longer.done
    assert not (tmp_path / "DONE").exists()
    longer.finish(20)
    assert RunFolder.open(tmp_path, changed("steps", 20)).done


def test_a_run_that_ended_at_its_tokens_is_done_with_fewer_steps(tmp_path):
    config = {**CONFIG, "tokens": 500}
    RunFolder.open(tmp_path, config).finish(CONFIG["steps"] - 1)
    assert RunFolder.open(tmp_path, config).done
    assert RunFolder.open(tmp_path, {**config, "steps": 20}).done


def let_go(tmp_path: Path, config: dict) -> None:
    with RunFolder.open(tmp_path, config).held():
        pass


@pytest.mark.parametrize("done", [True, False])
def test_metrics_that_lost_their_checkpoints_are_not_erased(tmp_path, done):
    config = changed("checkpoint.every", 4)
    let_go(tmp_path, config)
    write_rows(tmp_path, range(1, 11))
    if done:
        (tmp_path / "DONE").write_text("10\n")
        config = {**config, "steps": 20}
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=f"checkpoint of step {10 if done else 8} is missing"):
        RunFolder.open(tmp_path, config)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert (tmp_path / "DONE").exists() == done


def test_a_kill_before_the_first_checkpoint_starts_again(tmp_path):
    config = changed("checkpoint.every", 4)
    let_go(tmp_path, config)
    write_rows(tmp_path, range(1, 5))  # the row of step 4 is written before its checkpoint
    let_go(tmp_path, config)


def test_a_refusal_takes_away_only_what_this_process_made(tmp_path):
    let_go(tmp_path, CONFIG)
    kept = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match="no"), RunFolder.open(tmp_path, CONFIG).held():
        raise UserError("no")
    assert {file.name for file in tmp_path.iterdir()} >= kept - {".lock"}


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "DONE"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[", b'"text"'])
def test_a_damaged_file_is_named_and_nothing_is_touched(tmp_path, name, content):
    let_go(tmp_path, CONFIG)
    (tmp_path / name).write_bytes(content)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=f"{name}: damaged"):
        RunFolder.open(tmp_path, CONFIG)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.crc32", "DONE", "FAILED", "certificate.json", ".lock"])
@pytest.mark.parametrize("what", ["a folder", "a link to nothing"])
def test_what_should_be_a_file_is_named_and_nothing_is_touched(tmp_path, name, what):
    let_go(tmp_path, CONFIG)
    (tmp_path / "DONE").write_text("3\n")
    file = tmp_path / name
    file.unlink(missing_ok=True)
    if what == "a folder":
        file.mkdir()
    else:
        file.symlink_to(file)
    before = {other: other.lstat().st_mtime_ns for other in tmp_path.iterdir()}
    with pytest.raises(UserError, match=f"{name}: damaged, it is {what}"):
        RunFolder.open(tmp_path, changed("steps", 100))
    assert {other: other.lstat().st_mtime_ns for other in tmp_path.iterdir()} == before


def test_a_folder_that_was_there_before_stays_after_a_refusal(tmp_path):
    for folder in (tmp_path / "there", tmp_path / "new"):
        (tmp_path / "there").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="no"), RunFolder.open(folder, CONFIG).held():
            raise UserError("no")
    assert [*tmp_path.rglob("*")] == [tmp_path / "there"]


def test_a_checkpoint_without_its_manifest_is_named_and_kept(tmp_path):
    let_go(tmp_path, CONFIG)
    save_checkpoint(tmp_path / "checkpoints", 5, lambda to: None, {}, {})
    (tmp_path / "checkpoints" / "step-000005" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"step-000005: has no manifest\.json"):
        RunFolder.open(tmp_path, CONFIG)
    assert (tmp_path / "checkpoints" / "step-000005" / "trainer.json").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    write_rows(tmp_path, [1])
    with pytest.raises(UserError, match=r"has metrics\.jsonl but no config\.yaml"):
        RunFolder.open(tmp_path, CONFIG)


def test_a_kill_before_the_config_was_written_leaves_a_new_folder(tmp_path):
    RunFolder.open(tmp_path, CONFIG)
    (tmp_path / "config.yaml").rename(tmp_path / ".config.yaml.partial")
    RunFolder.open(tmp_path, changed("seed", 8))


def test_one_process_holds_a_folder_until_it_dies(tmp_path):
    RunFolder.open(tmp_path, CONFIG)  # in this process: not kept, and the next line opens it again all the same
    program = (
        "import sys, time, json; from pathlib import Path; from opo.run.folder import RunFolder\n"
        "folder = RunFolder.open(Path(sys.argv[1]), json.loads(sys.argv[2])); print('held', flush=True); time.sleep(600)"
    )
    other = tmp_path / "other"
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", program, str(other), json.dumps(CONFIG)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(root)})
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process is training in this folder"):
        RunFolder.open(other, CONFIG)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    RunFolder.open(other, CONFIG)


def test_the_newest_complete_checkpoint_is_found(tmp_path):
    folder = RunFolder.open(tmp_path, CONFIG)
    for step in (5, 10):
        save_checkpoint(tmp_path / "checkpoints", step, lambda to: None, {}, {"step": step})
    (tmp_path / "checkpoints" / ".step-000015.partial-9").mkdir()
    assert folder.latest_checkpoint() == tmp_path / "checkpoints" / "step-000010"
    assert not (tmp_path / "checkpoints" / ".step-000015.partial-9").exists()


def test_a_checkpoint_of_another_step_or_run_is_named(tmp_path):
    folder = RunFolder.open(tmp_path, CONFIG)
    made = save_checkpoint(tmp_path / "checkpoints", 5, lambda to: None, {}, {"step": 5}, run=folder.wandb_id)
    assert folder.latest_checkpoint() == made
    moved = made.rename(made.with_name("step-000010"))
    with pytest.raises(UserError, match=r"step-000010: is the checkpoint of step 5 and not of step 10"):
        folder.latest_checkpoint()
    moved.rename(made)
    other = save_checkpoint(tmp_path / "elsewhere", 10, lambda to: None, {}, {"step": 10}, run="another0")
    other.rename(tmp_path / "checkpoints" / other.name)
    with pytest.raises(UserError, match=f"is the checkpoint of run another0 and not of run {folder.wandb_id}"):
        folder.latest_checkpoint()


def test_what_only_looks_like_a_checkpoint_is_named(tmp_path):
    with RunFolder.open(tmp_path, CONFIG).held():
        pass
    (tmp_path / "checkpoints" / "step-00x").mkdir(parents=True)
    with pytest.raises(UserError, match=r"step-00x: is named like a checkpoint, step-NNNNNN, and has no number"):
        RunFolder.open(tmp_path, CONFIG)


def test_a_done_that_is_not_the_last_row_is_named(tmp_path):
    folder = RunFolder.open(tmp_path, CONFIG)
    write_rows(tmp_path, range(1, 10))
    folder.finish(10)
    with pytest.raises(UserError, match=r"DONE: damaged, it says 10 steps and metrics.jsonl ends at 9"):
        RunFolder.open(tmp_path, CONFIG)


@pytest.mark.parametrize("step", ['"4"', "null", "true", "[4]", "4.0", "NaN", "1e999"])
def test_a_step_that_is_no_whole_number_is_named(tmp_path, step):
    folder = RunFolder.open(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text(f'{{"train/step": {step}}}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 1: not a row of metrics"):
        folder.truncate_metrics(1)


def test_rows_of_another_layout_are_cut_byte_by_byte_and_other_files_stay(tmp_path):
    folder = RunFolder.open(tmp_path, CONFIG)
    lines = [b'{"train/step":%d, "a": 1e-1}\r\n' % step for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "notes.parquet").touch()
    folder.truncate_metrics(2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines[:2])
    folder.truncate_metrics(2)  # and the checksums are those of what is there
    assert (tmp_path / "rollouts" / "notes.parquet").exists()


@pytest.mark.parametrize("tail", ["", '{"train/step": 8, "train/rew', "\0\0\0"])
def test_metrics_are_cut_back_to_the_checkpoint_and_mended(tmp_path, tail):
    folder = RunFolder.open(tmp_path, CONFIG)
    write_rows(tmp_path, range(1, 8), tail)
    kept = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")[:4]
    (tmp_path / "rollouts").mkdir()
    for name in ("step-000004.parquet", "step-000005.parquet", ".step-000008.parquet"):
        (tmp_path / "rollouts" / name).touch()
    folder.truncate_metrics(4)
    assert (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")[:4] == kept
    assert [row["train/step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    assert [file.name for file in (tmp_path / "rollouts").iterdir()] == ["step-000004.parquet"]


def test_a_line_cut_right_after_the_last_row_is_no_row(tmp_path):
    """The checkpoint's own row has its line end; only what came after it may be torn."""
    folder = RunFolder.open(tmp_path, CONFIG)
    write_rows(tmp_path, [1, 2], json.dumps({"train/step": 3}))
    folder.truncate_metrics(2)
    assert [row["train/step"] for row in rows(tmp_path)] == [1, 2]
    write_rows(tmp_path, [1, 2], json.dumps({"train/step": 3}))
    with pytest.raises(UserError, match="each step from 1 to 3"):
        folder.truncate_metrics(3)


@pytest.mark.parametrize("steps", [[1, 2], [1, 3], [1, 2, 2, 3], [2, 1, 3]])
def test_metrics_that_do_not_lead_to_the_checkpoint_are_refused(tmp_path, steps):
    folder = RunFolder.open(tmp_path, CONFIG)
    write_rows(tmp_path, steps)
    with pytest.raises(UserError, match="does not hold each step from 1 to 3 once"):
        folder.truncate_metrics(3)


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    folder = RunFolder.open(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text('{"train/step": 1}\n{"train/st\n{"train/step": 3}\n')
    with pytest.raises(UserError, match="line 2: not a row of metrics"):
        folder.truncate_metrics(3)


def test_without_a_checkpoint_nothing_is_left(tmp_path):
    folder = RunFolder.open(tmp_path, CONFIG)
    folder.truncate_metrics(0)
    write_rows(tmp_path, [1, 2], "{")
    folder.truncate_metrics(0)
    assert rows(tmp_path) == []


def test_floats_survive_a_cut_bit_by_bit(tmp_path):
    folder = RunFolder.open(tmp_path, CONFIG)
    values = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, math.pi, -0.0, 12]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"train/step": i, "x": v}) + "\n" for i, v in enumerate(values, 1))
    )
    before = (tmp_path / "metrics.jsonl").read_bytes()
    folder.truncate_metrics(len(values))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
