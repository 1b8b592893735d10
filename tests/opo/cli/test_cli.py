"""The command line as a user meets it: exit status, one line, nothing written; names of folders; sweeps whose jobs fail."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import opo.cli.train
from opo.cli import COMMANDS, main, rewritten
from opo.cli.compose import compose_job, composing, run_name
from opo.errors import StoppedRun, UserError
from opo.train.interrupt import Interrupt

QUICK = ["debug=tiny_steps", "steps=1", "tracking=off", "evaluate.every=0", "rollout.max_new_tokens=8", "threads=1"]


@dataclass
class Result:
    status: Any
    out: str
    err: str


@pytest.fixture
def opo_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`opo ARGUMENTS` in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capfd.readouterr()
        return Result(caught.value.code or 0, out, err)

    return call


REFUSED = [
    ("algo=opoo", "algo=opoo", "did you mean opo?"),
    ("algo=null", "algo=null", "a choice is needed"),
    ("optim.lr=1", "optim.lr", "did you mean optim.learning_rate?"),
    ("lr=1", "lr", "did you mean optim.learning_rate?"),
    ("rollout.group_sze=4", "rollout.group_sze", "did you mean rollout.group_size?"),
    ("algo=grpo algo.clip_hihg=1", "algo.clip_hihg", "did you mean algo.clip_high?"),
    ("+extra=1", "extra", "unknown key"),
    ("+steps=3", "steps", "leave out the +"),
    ("steps=abc", "steps=abc", "a whole number is needed"),
    ("optim.learning_rate=nan", "optim.learning_rate=nan", "a finite number is needed"),
    ("algo=opo algo.updates_per_rollout=2", "algo.updates_per_rollout=2", "allowed is 1"),
    ("rollout.top_p=0.5", "rollout.top_p=0.5", "allowed is 1"),
    ("model=/nowhere", "model.path=/nowhere", "no such folder"),
    ("model=tinny", "model=tinny", "did you mean tiny?"),
    ("model=smollm2 task=math", "task.path", "a value is needed"),
    ("seed=0,1", "seed=0,1", "need -m"),
    ("algo=glob(*po)", "algo=", "need -m"),
    ("-m seed=range(0,100000000)", "seed=range(0,100000000)", "OPO_MOST_JOBS"),
    (f"{'k' * 5000}=1", "kkk", "no key is so long"),
    (f"study={'x' * 300}", "study=xxx", "at most 200 bytes"),
    (f"seed={'9' * 5000}", "seed=999", "cannot be read"),
    ("optim.learning_rate=1e308", "optim.learning_rate=1e+308", "at most 1"),
    ("device=\x1b[31m", "device=\\x1b[31m", "cannot be read"),
    ("-m seed=0,1 rollout.group_size=1,8", "rollout.group_size=1", "at least 2"),
    ("-m steps=1,2", "steps=1", "two jobs for the folder"),
    ("experiment=nope", "experiment=nope", "not one of"),
    ("-m hydra/launcher=joblib hydra.launcher.timeout=5 seed=0,1", "hydra.launcher.timeout=5", "n_jobs counts alone"),
    ("steps", "steps", "write key=value"),
    ("optim={", "optim={", "write key=value"),
    ("study=${nope}", "study", "'nope' not found"),
    ("--bogus", "--bogus", "--help"),
    ("--resolve", "--resolve", "goes with --cfg or --help"),
    ("-p nope --cfg job", "--package nope", "allowed are algo, "),
    ("-p hydra --cfg job", "--package hydra", "no such part"),
    ("-m seed=range(3,0)", "seed=range(3,0)", "holds no value"),
    ("algo=[opo,grpo]", "algo", "one choice is needed"),
    ("-m algo=[opo,grpo]", "algo", "one choice is needed"),
    ("model=[tiny,smollm2]", "model", "one choice is needed"),
    ("model.lora_targets=q_proj", "model.lora_rank=0", "at least 1"),
    ("model.lora_targets=[] model.lora_rank=4", "model.lora_targets=[]", "all-linear and names"),
    ("hydra.run.dir=/proc/none/here", "/proc/none", "cannot be made"),
    ("+algo=grpo", "+algo=grpo", "leave out the +"),
    ("model=[a]", "model=a", "not one of gemma3_270m, "),
    ("--config-name nope", "--config-name nope", "no such file"),
    ("--config-path /nowhere", "--config-path /nowhere", "no such folder"),
]


@pytest.mark.parametrize(("arguments", "key", "said"), REFUSED, ids=[arguments for arguments, *_ in REFUSED])
def test_what_cannot_be_used_is_refused_in_one_line_and_nothing_is_written(
    arguments: str, key: str, said: str, opo_in: Callable[..., Result], tmp_path: Path
) -> None:
    result = opo_in("train", *arguments.split())
    assert result.status == 2
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert key in result.err
    assert said in result.err
    assert list(tmp_path.iterdir()) == []


def test_commands_are_listed_and_an_unknown_one_is_refused(opo_in: Callable[..., Result]) -> None:
    assert all(f"opo {name} " in opo_in().out for name in COMMANDS)
    assert opo_in("--help").out == opo_in().out
    refused = opo_in("trian")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "opo trian: no such command (did you mean train?)" in refused.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_shows_its_config(
    command: str, opo_in: Callable[..., Result], tmp_path: Path
) -> None:
    shown = opo_in(command, "--help")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.startswith(f"opo {command}")
    assert "$" not in shown.out.partition("\n\n")[0]
    printed = opo_in(command, "--cfg", "job")
    assert printed.status == 0
    assert "hydra" not in yaml.safe_load(printed.out)
    assert list(tmp_path.iterdir()) == []


def test_help_needs_none_of_the_heavy_libraries() -> None:
    code = "import sys; from opo.cli import usage; usage(); sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "opo", "train", "optim.lr=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("optim.lr: unknown key (did you mean optim.learning_rate?)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "opo-arithmetic-s0"),
        (["algo=opo", "task=arithmetic", "seed=0", "steps=3", "study=x", "tracking=off"], "opo-arithmetic-s0"),
        (["tracking.project=x", "checkpoint.every=3", "sweep=algorithms", "hydra.run.dir=x"], "opo-arithmetic-s0"),
        (
            ["rollout.group_size=4", "optim.learning_rate=1e-3"],
            "opo-arithmetic-s0-optim.learning_rate=0.001-rollout.group_size=4",
        ),
        (
            ["optim.learning_rate=0.001", "++rollout.group_size=4"],
            "opo-arithmetic-s0-optim.learning_rate=0.001-rollout.group_size=4",
        ),
        (["algo.kl_coef=0.1", "task.seed=3"], "opo-arithmetic-s0-algo.kl_coef=0.1-task.seed=3"),
        (["model=pretrained", "model.path='a b/c'"], "opo-arithmetic-s0-model=a_b_c"),
        (["experiment=big", "debug=tiny_steps"], "opo-arithmetic-s0-debug=tiny_steps-experiment=big"),
        (["seed=0", "threads=2", "device=cpu", "parallel=sharded", "reward.workers=4"], "opo-arithmetic-s0"),
    ],
)
def test_a_folder_is_named_by_what_changes_the_run(overrides: list[str], name: str) -> None:
    assert run_name({"algo": "opo", "task": "arithmetic"}, 0, overrides) == name


def test_names_are_folders_however_long() -> None:
    def named(value: str) -> str:
        return run_name({"algo": "opo", "task": "arithmetic"}, 0, [f"model.path='{value}'"])

    assert "/" not in named("../../etc")
    assert len(named("x" * 500)) < 255
    assert named("x" * 500) != named("x" * 501)


def test_a_run_alone_and_the_same_job_of_a_sweep_share_a_folder() -> None:
    with composing():
        alone = compose_job("train", ["seed=3", "optim.learning_rate=1e-3"])
        swept = compose_job("train", ["seed=3", "optim.learning_rate=0.001"])
        folder = OmegaConf.select(alone, "hydra.run.dir")
        assert folder == f"{swept.hydra.sweep.dir}/{swept.hydra.sweep.subdir}"
        assert folder == "runs/default/opo-arithmetic-s3-optim.learning_rate=0.001"


def test_paths_reach_hydra_as_they_are(tmp_path: Path) -> None:
    assert rewritten("model=tiny") == ["model=tiny"]
    assert rewritten("model=tiny,smollm2") == ["model=tiny,smollm2"]
    assert rewritten("model=org/name") == ["model=pretrained", "model.path='org/name'"]
    assert rewritten(f"model={tmp_path}") == ["model=pretrained", f"model.path='{tmp_path}'"]
    assert rewritten("model=./a,./b") == ["model=pretrained", "model.path='./a','./b'"]
    assert rewritten("checkpoint=runs/a-seed=1/b") == ["checkpoint='runs/a-seed=1/b'"]
    assert rewritten("a.b={c: 1}") == ["a.b={c: 1}"]
    assert rewritten("~key") == ["~key"]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[dict[str, Any], Path], None]], None]:
    """Lets a function of a test be what `opo train` runs, where the test is about everything around it."""

    def replace(train: Callable[[dict[str, Any], Path], None]) -> None:
        monkeypatch.setattr(opo.cli.train, "train", train)

    return replace


@pytest.mark.parametrize(
    ("error", "status", "err"),
    [(UserError("key: wrong\nreally"), 2, "key: wrong really\n"), (StoppedRun("stopped at 3"), 1, "stopped at 3\n")],
)
def test_what_ends_a_single_run_is_one_line(
    error: Exception, status: int, err: str, opo_in: Callable[..., Result], stand_in: Callable[..., None]
) -> None:
    def train(config: dict[str, Any], folder: Path) -> None:
        raise error

    stand_in(train)
    result = opo_in("train")
    assert (result.status, result.err) == (status, err)


@pytest.mark.parametrize("multirun", [[], ["-m"]])
def test_a_refused_job_takes_away_the_folders_it_made_and_no_other(
    multirun: list[str], tmp_path: Path, opo_in: Callable[..., Result], stand_in: Callable[..., None]
) -> None:
    def train(config: dict[str, Any], folder: Path) -> None:
        raise UserError("key: wrong")

    stand_in(train)
    (tmp_path / "mine" / "inner").mkdir(parents=True)
    opo_in("train", *multirun, "hydra.run.dir=mine/inner", "hydra.sweep.dir=mine", "hydra.sweep.subdir=inner")
    assert (tmp_path / "mine" / "inner").is_dir()
    opo_in("train", *multirun, "hydra.run.dir=mine/a/b", "hydra.sweep.dir=mine", "hydra.sweep.subdir=a/b")
    assert not (tmp_path / "mine" / "a" / "b").exists()
    assert (tmp_path / "mine" / "a").exists() == bool(multirun)
    if not multirun:
        opo_in("train", "study=s")
        assert not (tmp_path / "runs").exists()


def test_a_refused_command_leaves_the_empty_folder_it_was_given_in(
    tmp_path: Path, opo_in: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def doctor(config: dict[str, Any], folder: Path) -> None:
        raise UserError("key: wrong")

    monkeypatch.setattr("analysis.commands.doctor.main", doctor)
    assert opo_in("doctor").err == "key: wrong\n"
    assert tmp_path.is_dir()


def test_a_bug_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: Callable[..., None]
) -> None:
    def train(config: dict[str, Any], folder: Path) -> None:
        raise ZeroDivisionError("a bug")

    stand_in(train)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["train"])
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_failing_jobs_are_announced_at_once_and_listed_at_the_end(
    tmp_path: Path, opo_in: Callable[..., Result], stand_in: Callable[..., None]
) -> None:
    def train(config: dict[str, Any], folder: Path) -> None:
        print(f"started {config['seed']}", file=sys.stderr)
        if config["seed"] == 0:
            raise UserError("rollout.engine=vllm: no memory")
        if config["seed"] == 1:
            raise ZeroDivisionError("a bug")
        (folder / "DONE").touch()

    stand_in(train)
    result = opo_in("train", "-m", "seed=0,1,2", "study=s")
    lines = result.err.splitlines()
    assert result.status == 1
    announced = lines.index("FAILED opo-arithmetic-s0: rollout.engine=vllm: no memory")
    assert lines.index("started 0") < announced < lines.index("started 1") < lines.index("started 2")
    assert "FAILED opo-arithmetic-s1: ZeroDivisionError: a bug" in lines
    assert any("in train" in line for line in lines)  # the bug's traceback
    assert lines[-3:] == [
        "2 failed:",
        "  opo-arithmetic-s0  rollout.engine=vllm: no memory",
        "  opo-arithmetic-s1  ZeroDivisionError: a bug",
    ]
    assert (tmp_path / "runs" / "s" / "opo-arithmetic-s2" / "DONE").exists()
    assert not list((tmp_path / "runs").glob(".failed*"))


def test_a_sweep_in_processes_trains_and_says_which_job_failed(tmp_path: Path, opo_in: Callable[..., Result]) -> None:
    processes = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert opo_in("train", "-m", "seed=0,1", *QUICK, *processes).status == 0
    folders = sorted(path.name for path in (tmp_path / "runs" / "debug").iterdir())
    extra = "debug=tiny_steps-evaluate.every=0-rollout.max_new_tokens=8"
    assert folders == [f"opo-arithmetic-s0-{extra}", f"opo-arithmetic-s1-{extra}"]
    for folder in folders:
        assert (tmp_path / "runs" / "debug" / folder / "DONE").exists()
    other = tmp_path / "runs" / "debug" / folders[0] / "config.yaml"
    other.write_text(other.read_text().replace("seed: 0", "seed: 5"))
    again = opo_in("train", "-m", "seed=0,1", *QUICK, *processes)
    assert again.status == 1
    assert f"FAILED {folders[0]}: " in again.err
    assert again.err.splitlines()[-2] == "1 failed:"


def test_a_run_is_replayed_from_its_config(tmp_path: Path, opo_in: Callable[..., Result]) -> None:
    assert opo_in("train", *QUICK, "hydra.run.dir=one").status == 0
    assert opo_in("train", "--config-path", "one", "--config-name", "config", "hydra.run.dir=two").status == 0
    one, two = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two"))
    volatile = ("time/", "memory/")

    def lasting(line: str) -> dict[str, Any]:
        row = json.loads(line)
        return {k: v for k, v in row.items() if not k.startswith(volatile) and not k.endswith("tokens_per_s")}

    assert [lasting(line) for line in one] == [lasting(line) for line in two]
    assert (tmp_path / "one" / "config.yaml").read_text() == (tmp_path / "two" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("line", "expected"),
    [("opo tr", {"train", "track"}), ("opo train algo=gr", {"algo=grpo", "algo=group_mean"})],
)
def test_tab_completes_commands_and_choices(
    line: str, expected: set[str], opo_in: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert set(opo_in("-sc", "query=bash").out.split()) == expected


def test_the_completion_script_is_for_opo(opo_in: Callable[..., Result]) -> None:
    script = opo_in("-sc", "install=bash").out
    assert script.rstrip().endswith(" opo")
    with contextlib.suppress(FileNotFoundError):
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_paths_of_models_keep_their_odd_characters(tmp_path: Path) -> None:
    odd = tmp_path / "a,b=c (1) 50%"
    odd.mkdir()
    for written in (f"model={odd}", f"model='{odd}'", f'model="{odd}"'):
        assert rewritten(written) == ["model=pretrained", f"model.path='{odd}'"]


def test_sigterm_ends_a_serial_sweep_with_the_job_that_heard_it(
    opo_in: Callable[..., Result], stand_in: Callable[..., None]
) -> None:
    begun = []

    def train(config: dict[str, Any], folder: Path) -> None:
        begun.append(config["seed"])
        with Interrupt() as interrupt:
            if config["seed"] == 1:
                signal.raise_signal(signal.SIGTERM)
                interrupt.leave(folder, 3)

    stand_in(train)
    result = opo_in("train", "-m", "seed=0,1,2")
    assert (begun, result.status) == ([0, 1], 1)
    assert "stopped by SIGTERM after step 3 and saved" in result.err
    assert result.err.endswith("the sweep ends here, and the same command does its other jobs\n")
    assert not list(Path("runs").glob(".jobs*"))


def test_a_reader_that_has_closed_the_pipe_is_no_error(tmp_path: Path) -> None:
    """As in `opo plan train | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "opo", "plan", "train", "teraflops=1", "json=true"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=60)
    os.close(writer)
    assert done.stderr == ""
