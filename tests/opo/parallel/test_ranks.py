"""Two ranks are one process: the same samples, metrics and weights; how they are resumed, stopped, and end when one of them dies.

Float64 and a policy whose every operation is in float64, so that what remains is the order of sums. AdamW divides by the root of its
second moment and makes 1e-15 of a small gradient 1e-11.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from ranks import PROJECT, run, settings, small_policy, start
from safetensors.torch import load_file

from opo.config.rules import enough_for_the_ranks
from opo.system.world import World

CLOSE = 1e-10
ROLLOUT = {"num_prompts": 6, "group_size": 4, "max_new_tokens": 12}
CASES: dict[str, dict[str, Any]] = {
    "opo": {},  # five prompts: the ranks have unequal numbers of micro-batches
    "grpo": {"algo": {"name": "grpo", "updates_per_rollout": 4, "minibatches": 2}, "rollout": ROLLOUT},
    "reinforce_pp": {"algo": {"name": "reinforce_pp", "kl_coef": 0.1, "kl_placement": "reward", "kl_estimator": "k1"}},
    "ppo": {"algo": {"name": "ppo", "updates_per_rollout": 2}},
    "lora": {"lora_rank": 2},
    "entropy": {"algo": {"name": "opo", "entropy_coef": 0.1}},
    "kl": {"algo": {"name": "dr_grpo", "kl_coef": 0.1}},
    "remax": {"algo": {"name": "remax"}},
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory.mktemp("policy"))


def asked(policy: Path, name: str, mode: str = "replicated", **changes: Any) -> dict[str, Any]:
    case = dict(CASES[name])
    given = settings(policy)
    given["model"] |= {"lora_rank": case.pop("lora_rank", 0)}
    return given | case | {"parallel": {"mode": mode}} | changes


def rows(folder: Path) -> list[dict[str, float]]:
    """Metrics that must agree; which weights are looked at to see how many moved depends on how they are cut."""
    apart = ("time/", "memory/", "rollout/tokens", "update/tokens", "train/moved")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(apart)} for line in lines]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    files = [*(last / "policy").glob("*.safetensors"), last / "trainer.safetensors"]
    return {f"{file.name}/{k}": v for file in files for k, v in load_file(file).items()}


def assert_equal(one: Path, other: Path, tolerance: float = CLOSE) -> None:
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].double() - b[name].double()).abs().max() <= tolerance, name


def test_two_ranks_are_one_process(policy: Path, tmp_path: Path) -> None:
    """Replicated and sharded, and sharded where no batch has a gradient."""
    one, two, cut, still = (tmp_path / name for name in ("one", "two", "cut", "still"))
    equal_rewards = asked(policy, "opo", "sharded", task={"modulus": 1}, steps=2)
    run({one: asked(policy, "opo")}, 1)
    run({two: asked(policy, "opo"), cut: asked(policy, "opo", "sharded"), still: equal_rewards}, 2)
    assert [row["train/grad_norm"] for row in rows(still)] == [0.0, 0.0]
    assert_equal(two, one)
    assert_equal(cut, one)
    record = json.loads((two / "certificate.json").read_text())
    assert (record["exactly_on_policy"], record["steps_checked"]) == (True, 3)
    last = json.loads((two / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["time/wait_share"] < 0.5
    assert last["time/ranks_wait_s"] > 0


@pytest.mark.prove
def test_every_kind_of_update_on_two_ranks(policy: Path, tmp_path: Path) -> None:
    modes = ("replicated", "sharded")
    run({tmp_path / f"{name}-one": asked(policy, name) for name in CASES}, 1)
    run({tmp_path / f"{name}-{mode}": asked(policy, name, mode) for name in CASES for mode in modes}, 2)
    for name in CASES:
        for mode in modes:
            assert_equal(tmp_path / f"{name}-{mode}", tmp_path / f"{name}-one")


@pytest.mark.prove
@pytest.mark.parametrize("mode", ["replicated", "sharded"])
def test_a_run_goes_on_with_another_number_of_ranks(policy: Path, tmp_path: Path, mode: str) -> None:
    """Two ranks, then one, then two: as one process all along; on the same number of ranks bit by bit."""
    one, mixed, whole, halves = (tmp_path / name for name in ("one", "mixed", "whole", "halves"))
    run({one: asked(policy, "ppo", steps=6)}, 1)
    run({whole: asked(policy, "ppo", mode, steps=6), halves: asked(policy, "ppo", mode, steps=3)}, 2)
    run({halves: asked(policy, "ppo", mode, steps=6)}, 2)
    for steps, ranks in ((2, 2), (4, 1), (6, 2)):
        run({mixed: asked(policy, "ppo", mode, steps=steps)}, ranks)
    assert_equal(mixed, one)
    assert_equal(halves, whole, 0.0)


def started(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pids(process: subprocess.Popen[str]) -> dict[int, int]:
    """Rank -> process id, of torchrun's children."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if rank := [int(line[5:]) for line in environment if line.startswith(b"RANK=")]:
            found[rank[0]] = int(child)
    return found


@pytest.mark.prove
@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_rank_saves_on_all(policy: Path, tmp_path: Path, rank: int) -> None:
    folder = tmp_path / "run"
    process = start({folder: asked(policy, "opo", steps=5000, checkpoint={"every": 0})}, 2)
    started(folder, process)
    os.kill(pids(process)[rank], signal.SIGTERM)
    _, stderr = process.communicate(timeout=100)
    steps = len(rows(folder))
    assert (folder / "checkpoints" / f"step-{steps:06d}" / "manifest.json").exists()
    assert stderr.count("stopped by SIGTERM after step") == 1
    assert not (folder / "DONE").exists()


@pytest.mark.prove
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_others_with_its_name(policy: Path, tmp_path: Path, rank: int) -> None:
    """And the same command goes on from the last checkpoint, bit by bit."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    given = asked(policy, "opo", steps=120, checkpoint={"every": 2})
    process = start({folder: given}, 2)
    started(folder, process)
    os.kill(pids(process)[rank], signal.SIGKILL)
    _, stderr = process.communicate(timeout=100)
    assert stderr.count(f"rank {rank} of 2 ended before the run did") == 1
    assert not (folder / "DONE").exists()
    run({folder: given, whole: given}, 2)
    assert_equal(folder, whole, 0.0)


def test_a_world_of_one_opens_nothing() -> None:
    with World.join() as world:
        assert (world.rank, world.size, world.mine([3, 4, 5])) == (0, 1, [3, 4, 5])
        tensor = torch.ones(2)
        world.add(tensor)
        assert torch.equal(tensor, torch.ones(2))
        assert (world.gather("a"), world.any(True), world.most(7), world.mean(0.1)) == (["a"], True, 7, 0.1)
        assert not torch.distributed.is_initialized()


def test_more_ranks_than_prompts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from opo.config.schema import RolloutConfig, RunConfig

    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    config = RunConfig.of(None, algo=_algo(minibatches=2), rollout=RolloutConfig(num_prompts=6))
    assert list(enough_for_the_ranks(config)) == ["rollout.num_prompts=6: 4 ranks need at least 8"]


def _algo(**given: Any) -> Any:
    from opo.config.schema import AlgoConfig

    return AlgoConfig(**given)


def test_the_command_line_on_ranks(tmp_path: Path) -> None:
    """A refusal is said once, and a command that has no use for ranks says so."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "opo"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    for arguments, line in (
        (["train", "steps=0"], "steps=0"),
        (["verify"], "opo verify: runs in one process; torchrun is for train, variance, evaluate, doctor"),
    ):
        ended = subprocess.run([*launcher, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True)
        said = [text for text in ended.stderr.splitlines() if text.startswith((line, "rank 1"))]
        assert [text.startswith(line) for text in said] == [True], ended.stderr
        assert "exitcode  : 2" in ended.stderr
        assert not list(tmp_path.iterdir())


def test_ranks_that_start_with_another_config_say_so_once_and_end(tmp_path: Path) -> None:
    """Exit status 2, one sentence from rank 0, no hang, nothing written."""
    command = f"{sys.executable} -m opo train debug=tiny_steps tracking=off threads=1 seed=$RANK"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    started = [*launcher, "bash", "-c", command]
    ended = subprocess.run(started, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    line = "seed: rank 0 and rank 1 were started with different values; give all ranks one command\n"
    assert ended.stderr.count(line) == 1, ended.stderr
    assert "exitcode  : 2" in ended.stderr  # of the other rank too, unless torchrun ended it first
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.prove
def test_a_second_run_in_the_folder_is_refused_on_all_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "opo"]
    given = ["train", "debug=tiny_steps", "tracking=off", "threads=1", f"hydra.run.dir={folder}"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    with FileLock(folder / ".lock"):
        ended = subprocess.run([*launcher, *given], env=environment, capture_output=True, text=True, timeout=250)
    assert ended.stderr.count(f"{folder}: another process is training in this folder") == 1, ended.stderr
    assert "exitcode  : 2" in ended.stderr  # of the other rank too, unless torchrun ended it first
