"""The process in which responses are scored: `python -m opo.rewards.worker`, started and killed by `opo.rewards.runner`.

Imports the task and nothing else of the project, so that it starts at once. Frames arrive on what was standard input, each eight
bytes of length and a pickle: first (token, memory limit in bytes, pickled task), then lists of (prompt, response). The taking of a list
is answered by one line, then each response by one, unbuffered so that the parent knows which response a worker was at: the token, then
the score's `repr` and those of its parts, or "!" and why there is none. The scorer is not told the token: a line without it is forged.
The task is made with standard input and output at /dev/null, the scorer runs with standard error there too: what they print or read
cannot disturb the exchange.
"""

import ctypes
import math
import os
import pickle
import queue
import resource
import signal
import sys
import threading
from numbers import Real

HEADER = 8  # bytes of a frame's length, big-endian
READY = b"ready"
TAKEN = b"taken"  # a list has been read: a crash from here on is its first response's


def evaluate(task, prompt, response: str) -> str:
    """One line for one response: repr(score) and of its parts, or "!reason" where the scorer raised or returned no finite number."""
    try:
        value = task.score(prompt, response)
    except (Exception, SystemExit) as error:  # whatever a scorer raises is the response's affair, not the run's
        return "!" + " ".join(f"exception: {type(error).__name__}: {_message(error)}".split())[:200]
    if not isinstance(value, Real):
        return f"!not a number: {type(value).__name__}"
    try:
        numbers = [float(number) for number in (value, *getattr(value, "parts", ()))]
    except OverflowError:  # an integer beyond float64
        return "!not finite: inf"
    return " ".join(map(repr, numbers)) if math.isfinite(numbers[0]) else f"!not finite: {numbers[0]}"


def _message(error: BaseException) -> str:
    """What an exception says, which is the scorer's own code and may raise in turn."""
    try:
        return str(error)
    except Exception:
        return ""


def _read_frames(source: int, frames: queue.SimpleQueue) -> None:
    """Queue every frame; at end of file, when the parent is gone, end this process and all that the scorer started."""
    with open(source, "rb") as stream:
        while len(header := stream.read(HEADER)) == HEADER:
            size = int.from_bytes(header, "big")
            if len(body := stream.read(size)) < size:
                break
            frames.put(body)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _die_with_parent() -> None:
    """Have the kernel kill this process with its parent, also when a scorer holds the interpreter's lock for ever."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    _die_with_parent()
    source, answers, nowhere = os.dup(0), os.dup(1), os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    frames: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read_frames, args=(source, frames), daemon=True).start()
    token, memory_bytes, pickled = pickle.loads(frames.get())
    task = pickle.loads(pickled)
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(nowhere, 2)
    os.write(answers, token + READY + b"\n")
    while True:
        questions = pickle.loads(frames.get())
        os.write(answers, token + TAKEN + b"\n")
        for prompt, response in questions:
            os.write(answers, token + evaluate(task, prompt, response).encode(errors="replace") + b"\n")


if __name__ == "__main__":
    main()
