"""The runner against scorers that hang, crash, lie and shout: each costs its response and nothing else."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from hostile import Hostile, Talkative, Unbuildable

from opo.rewards.runner import RewardRunner
from opo.tasks import TASKS, Prompt, make_task

PROMPT = Prompt(0, "?", "")


def score(runner, *responses):
    return runner.score([PROMPT], [list(responses)])


def alive(pid: int) -> bool:
    """False also for a process that has ended and waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(scope="module")
def runner():
    with RewardRunner(Hostile(), timeout_s=60.0, workers=1) as runner:
        yield runner


@pytest.fixture(scope="module")
def impatient():
    with RewardRunner(Hostile(), timeout_s=1.5, workers=1) as runner:
        yield runner


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("hang", "timeout"),
        ("hang_without_interpreter", "timeout"),
        ("exit 0", "crash: exit status 0"),
        ("exit 3", "crash: exit status 3"),
        ("segfault", "crash: exit status -11"),
        ("system_exit 4", "exception: SystemExit: 4"),
        ("raise oh", "exception: ValueError: oh second line ?"),
        ("return_text 1", "not a number: str"),
        ("return_none", "not a number: NoneType"),
        ("eat_memory", "exception: MemoryError:"),
        ("give nan", "not finite: nan"),
        ("give -inf", "not finite: -inf"),
    ],
)
def test_unscored_is_nan_with_its_reason_and_leaves_the_others_alone(runner, impatient, response, reason):
    scored = score(impatient if reason == "timeout" else runner, "give 0.1", response, "give 1e-300", "give 0")
    assert scored.reasons == {(0, 1): reason}
    assert scored.counts() == {reason.partition(":")[0]: 1}
    assert scored.rewards_PG.dtype == torch.float64
    assert scored.rewards_PG.tolist()[0][::2] == [0.1, 1e-300]
    assert scored.rewards_PG.isnan().tolist() == [[False, True, False, False]]


def test_what_a_scorer_prints_or_reads_disturbs_nothing(runner):
    assert score(runner, "shout", "read", "give 7").rewards_PG.tolist() == [[1.0, 0.0, 7.0]]


def test_rewards_cannot_be_forged(runner):
    """A scorer that writes answers to every open file: its own response is unscored and nothing else changes."""
    scored = score(runner, "give 0.5", "forge 1.0", "give 0.25")
    assert scored.reasons == {(0, 1): "forged: the scorer wrote to the pipe of answers"}
    assert scored.rewards_PG[0, ::2].tolist() == [0.5, 0.25]


def test_a_task_that_prints_while_it_is_made_disturbs_nothing(capfd):
    with RewardRunner(Talkative()) as runner:
        assert score(runner, "give 0.5").rewards_PG.tolist() == [[0.5]]
    assert capfd.readouterr().out == ""


def test_huge_responses_pass_in_both_directions(runner):
    assert score(runner, "length " + "x" * 5_000_000, "length").rewards_PG.tolist() == [[5_000_000.0, 0.0]]


def test_many_workers_give_what_one_gives():
    responses = [[f"give {(7 * p + g) / 3}" for g in range(5)] for p in range(40)]
    for p, g, bad in [(0, 0, "exit 1"), (11, 2, "raise x"), (39, 4, "give nan")]:
        responses[p][g] = bad
    prompts = [Prompt(p, "?", "") for p in range(40)]
    results = []
    for workers in (1, 3):
        with RewardRunner(Hostile(), timeout_s=5.0, workers=workers) as runner:
            results.append(runner.score(prompts, responses))
    one, three = results
    assert torch.equal(one.rewards_PG.nan_to_num(-1), three.rewards_PG.nan_to_num(-1))
    assert one.reasons == three.reasons
    assert list(one.reasons) == [(0, 0), (11, 2), (39, 4)]
    assert one.rewards_PG[12, 3] == (7 * 12 + 3) / 3


def test_a_worker_killed_while_idle_costs_nothing(runner):
    (pid,) = score(runner, "report_pid").rewards_PG[0].int().tolist()
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(pid))
    scored = score(runner, "give 1", "report_pid")
    assert not scored.reasons
    assert scored.rewards_PG[0, 1] != pid


def test_a_worker_killed_just_before_it_is_asked_costs_nothing(runner):
    for turn in range(25):  # whether the death is seen before the next question is sent is up to the kernel
        (pid,) = score(runner, "report_pid").rewards_PG[0].int().tolist()
        os.kill(pid, signal.SIGKILL)
        scored = score(runner, f"give {turn}", "give 0.5", "give -1")
        assert not scored.reasons
        assert scored.rewards_PG.tolist() == [[turn, 0.5, -1]]


def test_a_stopped_worker_is_a_timeout_not_a_stopped_parent(impatient):
    (pid,) = score(impatient, "report_pid").rewards_PG[0].int().tolist()
    os.kill(pid, signal.SIGSTOP)
    scored = score(impatient, "length " + "x" * 1_000_000, "give 2")
    assert scored.reasons == {(0, 0): "timeout"}
    assert scored.rewards_PG[0, 1] == 2


def test_what_a_scorer_started_dies_with_it(impatient, tmp_path):
    note = tmp_path / "pid"
    assert score(impatient, f"leave_a_child {note}").counts() == {"timeout": 1}
    child = int(note.read_text())
    assert wait_until(lambda: not alive(child))


def test_close_leaves_no_process():
    runner = RewardRunner(Hostile(), workers=2)
    pids = set(score(runner, *["report_pid"] * 200).rewards_PG[0].int().tolist())
    runner.close()
    runner.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("busy", ["", "hang", "hang_without_interpreter"])
def test_kill_of_the_parent_leaves_no_worker(busy):
    script = textwrap.dedent(f"""
        import sys
        from hostile import Hostile
        from opo.rewards.runner import RewardRunner
        from opo.tasks import Prompt
        PROMPT = Prompt(0, '?', '')
        runner = RewardRunner(Hostile(), timeout_s=600.0, workers=1)
        print(int(runner.score([PROMPT], [["report_pid"]]).rewards_PG), flush=True)
        if {busy!r}:
            runner.score([PROMPT], [[{busy!r}]])
        sys.stdin.read()
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2] / "support"), *sys.path])}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, env=environment) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert alive(worker)
        parent.kill()
    assert wait_until(lambda: not alive(worker))


def test_a_task_that_cannot_be_built_stops_the_run_with_a_sentence(capfd):
    with RewardRunner(Unbuildable()) as runner, pytest.raises(RuntimeError, match="could not be started"):
        score(runner, "give 1")
    assert "no such table of answers" in capfd.readouterr().err


def test_workers_import_no_torch(runner):
    task = make_task(TASKS["arithmetic"][0]())
    script = "import sys, opo.rewards.worker, opo.tasks; opo.tasks.make_task(opo.tasks.TASKS['arithmetic'][0]())"
    heavy = "{'torch', 'numpy', 'transformers', 'sympy', 'reasoning_gym', 'math_verify'}"
    assert (
        subprocess.run([sys.executable, "-c", f"{script}; sys.exit(bool({heavy} & sys.modules.keys()))"]).returncode
        == 0
    )
    with RewardRunner(task, workers=1) as runner:
        prompt = task.prompt(5)
        assert runner.score([prompt], [[prompt.answer, "0"]]).rewards_PG.tolist() == [[1.0, 0.0]]


def test_shapes_and_arguments(runner):
    assert runner.score([], []).rewards_PG.shape == (0, 0)
    with pytest.raises(ValueError, match="prompt 1: 1 responses"):
        runner.score([PROMPT, PROMPT], [["give 1", "give 2"], ["give 1"]])
    with pytest.raises(ValueError, match="2 prompts but 1 groups"):
        runner.score([PROMPT, PROMPT], [["give 1"]])
    with pytest.raises(ValueError, match="workers=0"):
        RewardRunner(Hostile(), workers=0)
    with pytest.raises(ValueError, match="timeout_s=0"):
        RewardRunner(Hostile(), timeout_s=0)
