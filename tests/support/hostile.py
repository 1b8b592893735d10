"""Scorers that misbehave in every way, in a module that worker processes import quickly."""

import ctypes
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from opo.tasks.base import Prompt


class Hostile:
    """A scorer that does to its process what the response says."""

    name: str = "hostile"
    stop: tuple[str, ...] = ()

    def prompt(self, index, split="train"):
        return Prompt(index, "?", "")

    def extract(self, response):
        return response

    def score(self, prompt, response):
        command, _, argument = response.partition(" ")
        return getattr(self, f"do_{command}")(argument)

    def do_give(self, number):
        return float(number)

    def do_hang(self, _):
        while True:
            pass

    def do_hang_without_interpreter(self, _):
        return float(re.match(r"(a+)+$", "a" * 64 + "b") is None)

    def do_exit(self, status):
        os._exit(int(status))

    def do_system_exit(self, status):
        sys.exit(int(status))

    def do_segfault(self, _):
        return ctypes.string_at(0)

    def do_raise(self, message):
        raise ValueError(message + "\nsecond line \udc80")

    def do_return_text(self, text):
        return text

    def do_return_none(self, _):
        return None

    def do_eat_memory(self, _):
        return len(bytearray(2**40))

    def do_shout(self, _):
        os.write(1, b"x" * 10**6)
        os.write(2, b"y" * 10**6)
        print("0.25\n" * 1000, flush=True)
        return 1.0

    def do_forge(self, text):
        for descriptor in range(3, 40):
            with suppress(OSError):
                os.write(descriptor, f"{text}\n".encode())
        return 0.0

    def do_read(self, _):
        return float(len(sys.stdin.read()))

    def do_leave_a_child(self, path):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(path).write_text(str(child.pid))
        self.do_hang("")

    def do_report_pid(self, _):
        return os.getpid()

    def do_length(self, text):
        return len(text)


class Unbuildable(Hostile):
    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise OSError("no such table of answers")


class Talkative(Hostile):
    """Prints while it is made."""

    def __reduce__(self):
        return _talk, ()


def _talk():
    print("made")
    return Talkative()
