"""Rewards from processes that can be killed: a scorer that hangs, crashes or returns NaN costs its response, never the run.

Each worker is a fresh interpreter in a process group of its own (no fork: the parent has threads), asked in batches and answering
response by response. A worker that is silent for longer than the time limit is killed with its whole group and replaced; the
response it was at is unscored, the ones behind it are asked again. One that died before it had read what it was asked (killed from
outside while idle) is replaced, and no response loses its reward.
"""

import os
import pickle
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opo.errors import UserError
from opo.rewards.worker import HEADER, READY, TAKEN
from opo.tasks.base import Prompt, Task
from opo.tasks.own import brief

START_LIMIT_S = 120.0  # to import and construct the task
BATCH = 64  # responses in one message
PIPE = 65536  # bytes written or read at once

Cell = tuple[int, int]  # (prompt, response), an index into rewards_PG


@dataclass(frozen=True, eq=False)
class ScoredRewards:
    """float64 rewards, NaN where a response could not be scored, and why."""

    rewards_PG: Tensor
    reasons: dict[
        Cell, str
    ]  # "timeout", "crash: ...", "forged: ...", "exception: ...", "not finite: ..." or "not a number: ..."
    parts_PGK: Tensor  # of a reward that is a sum of K functions, before they are weighted

    def counts(self) -> Counter[str]:
        """How many responses were unscored for each kind of reason."""
        return Counter(reason.partition(":")[0] for reason in self.reasons.values())


class RewardRunner:
    """Scores responses with `task` in `workers` processes, at most `timeout_s` seconds of wall clock for each response.

    The rewards depend on the task and the responses alone, not on the number of workers or the order. `memory_gib` bounds the
    address space of a worker (0: unbounded). Close it, or use it as a context manager.

    Raises UserError where the task or a prompt does not pickle, and RuntimeError where the task cannot be constructed in a worker,
    whose own message is then on standard error.
    """

    def __init__(self, task: Task, timeout_s: float = 10.0, workers: int = 1, memory_gib: float = 8.0):
        if not timeout_s > 0:
            raise ValueError(f"timeout_s={timeout_s}: must be above zero seconds")
        if workers < 1:
            raise ValueError(f"workers={workers}: needs at least one process, so that a scorer can be killed")
        pickled, memory_bytes = _pickled(task, f"task={task.name}: the task"), int(memory_gib * 2**30)
        self._num_parts = len(getattr(task, "parts", ()))
        self._selector = selectors.DefaultSelector()
        self._workers = [_Worker(self._selector, pickled, memory_bytes, timeout_s) for _ in range(workers)]

    def score(self, prompts: Sequence[Prompt], responses_PG: Sequence[Sequence[str]]) -> ScoredRewards:
        """Rewards of P groups of G responses. Raises ValueError, naming the prompt, where groups differ in size."""
        if len(prompts) != len(responses_PG):
            raise ValueError(f"{len(prompts)} prompts but {len(responses_PG)} groups of responses")
        group_size = len(responses_PG[0]) if responses_PG else 0
        for p, group in enumerate(responses_PG):
            if len(group) != group_size:
                raise ValueError(f"prompt {p}: {len(group)} responses where the first prompt has {group_size}")
        rewards_PG = torch.full((len(prompts), group_size), torch.nan, dtype=torch.float64)
        parts_PGK = torch.full((*rewards_PG.shape, self._num_parts), torch.nan, dtype=torch.float64)
        reasons: dict[Cell, str] = {}
        waiting = deque((p, g) for p in range(len(prompts)) for g in range(group_size))
        batch = min(BATCH, -(-len(waiting) // len(self._workers)))
        for worker in self._workers:
            worker.replace_if_dead()
        while waiting or any(worker.cells for worker in self._workers):
            for worker in self._workers:
                if waiting and not worker.cells:
                    cells = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
                    worker.ask(cells, [(prompts[p], responses_PG[p][g]) for p, g in cells])
            for cell, line in self._wait(waiting):
                if line.startswith("!"):
                    reasons[cell] = line[1:]
                else:
                    rewards_PG[cell], *parts = map(float, line.split())
                    parts_PGK[cell] = torch.tensor(parts, dtype=torch.float64)
        return ScoredRewards(rewards_PG, dict(sorted(reasons.items())), parts_PGK)

    def _wait(self, waiting: deque[Cell]) -> list[tuple[Cell, str]]:
        """Answers that come before the nearest deadline; the cells that a failed worker had not come to wait again."""
        patience = min(worker.deadline for worker in self._workers if worker.cells) - time.monotonic()
        answers: list[tuple[Cell, str]] = []
        failed: dict[_Worker, str] = {}
        for key, _ in self._selector.select(max(0.0, patience)):
            worker = key.data
            if key.fileobj is worker.stdin:
                worker.write()
            elif failure := worker.read(answers):
                failed[worker] = failure
        for worker in self._workers:
            if worker.cells and time.monotonic() > worker.deadline:
                failed.setdefault(worker, "timeout")
        for worker, reason in failed.items():
            answers += worker.replace(reason)
            waiting.extendleft(reversed(worker.cells))
            worker.cells.clear()
        return answers

    def close(self) -> None:
        """Kill the workers and everything they started. Closing twice is closing once."""
        for worker in self._workers:
            worker.kill()
        self._workers = []
        self._selector.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _pickled(value: Any, what: str) -> bytes:
    """The value for a worker. Raises UserError, which begins with `what`, where it does not pickle."""
    try:
        return pickle.dumps(value)
    except Exception as error:  # what the user's objects raise while they are pickled
        raise UserError(
            f"{what} cannot be sent to the reward workers, which are processes of their own ({brief(error)}); it must pickle: a lambda "
            "or an open file within it does not"
        ) from error


def _pickled_questions(questions: list[tuple[Prompt, str]]) -> bytes:
    """Questions for a worker. Raises UserError naming the prompt that does not pickle."""
    try:
        return pickle.dumps(questions)
    except Exception:  # as above; only now is it worth a look at each
        for prompt, _ in questions:
            _pickled(prompt, f"prompt {prompt.index}")
        raise


class _Worker:
    """The parent's end of one worker process: what it was asked, and by when its next answer is due."""

    def __init__(self, selector: selectors.BaseSelector, task: bytes, memory_bytes: int, timeout_s: float):
        self.selector, self.task, self.memory_bytes, self.timeout_s = selector, task, memory_bytes, timeout_s
        self.cells: deque[Cell] = deque()  # asked and not yet answered, in order
        self.taken = False  # whether the process has read what it was asked
        self.asked_again: Cell | None = None  # the first cell of what a process died without reading
        self.failed_starts = 0
        self.start()

    def start(self) -> None:
        """A new process, which finds the modules that this one finds."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "opo.rewards.worker"],  # -P: a random.py of the user's hides no module
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), os.getcwd()])},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self.stdin.fileno(), False)
        self.selector.register(self.stdout, selectors.EVENT_READ, self)
        self.ready, self.inbox, self.outbox = False, b"", b""
        self.deadline = time.monotonic() + START_LIMIT_S
        self.token = secrets.token_hex(16).encode()
        self._post(pickle.dumps((self.token, self.memory_bytes, self.task)))

    def ask(self, cells: list[Cell], questions: list[tuple[Prompt, str]]) -> None:
        """Send responses to be scored, known by their cells."""
        frame = _pickled_questions(questions)
        self.cells.extend(cells)
        self.taken = False
        if self.ready:
            self.deadline = time.monotonic() + self.timeout_s
        self._post(frame)

    def _post(self, frame: bytes) -> None:
        if not self.outbox:
            self.selector.register(self.stdin, selectors.EVENT_WRITE, self)
        self.outbox += len(frame).to_bytes(HEADER, "big") + frame

    def write(self) -> None:
        """As much of the outbox as the pipe takes: a worker that does not read must not stop its parent."""
        try:
            self.outbox = self.outbox[os.write(self.stdin.fileno(), self.outbox[:PIPE]) :]
        except BrokenPipeError:
            self.outbox = b""  # the end of the other pipe tells of the crash
        if not self.outbox:
            self.selector.unregister(self.stdin)

    def read(self, answers: list[tuple[Cell, str]]) -> str:
        """Append the answers that have come; why the process is of no more use, else ""."""
        received = os.read(self.stdout.fileno(), PIPE)
        *lines, self.inbox = (self.inbox + received).split(b"\n")
        for line in lines:
            content = line.removeprefix(self.token)
            if content == line:
                return "forged: the scorer wrote to the pipe of answers"
            if content == READY:
                self.ready, self.failed_starts = True, 0
            elif content == TAKEN:
                self.taken, self.asked_again = True, None
            else:
                answers.append((self.cells.popleft(), content.decode()))
        self.deadline = time.monotonic() + self.timeout_s
        return "" if received else "crash"

    def replace(self, reason: str) -> list[tuple[Cell, str]]:
        """A new process for one that hung or crashed: the answer for the response it was at."""
        was_ready = self.ready
        status = self.kill()
        if not was_ready:
            self.failed_starts += 1
            if status == 1 or self.failed_starts == 3:  # 1: an exception, which would come again
                raise RuntimeError(f"a reward worker could not be started ({reason}, exit status {status}): see above")
        self.start()
        if not was_ready or not self.cells:
            return []
        if reason == "crash" and not self.taken and self.asked_again != self.cells[0]:
            self.asked_again = self.cells[0]  # once: a list that kills whoever reads it must not be asked for ever
            return []
        return [(self.cells.popleft(), "!" + (f"crash: exit status {status}" if reason == "crash" else reason))]

    def replace_if_dead(self) -> None:
        """A new process for one that was ended while it had nothing to do: no response is to blame."""
        if self.ready and self.process.poll() is not None:
            self.kill()
            self.start()

    def kill(self) -> int:
        """End the process group and give the exit status (minus the signal's number where it was one)."""
        for pipe in (self.stdin, self.stdout):
            if not pipe.closed:
                with suppress(KeyError):
                    self.selector.unregister(pipe)
                pipe.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()
