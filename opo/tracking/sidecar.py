"""A process beside the trainer that may be slow, hang or die. Only its end is waited for, within a time limit."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path


class Sidecar:
    """`python -m MODULE ARGUMENT`, woken by bytes on its standard input; what it prints is appended to `log`.

    It leads a session of its own, so that a Ctrl-C at the trainer does not reach it. It sees the end of its input when
    the trainer ends, however that ends.
    """

    def __init__(self, module: str, argument: str, log: Path, environment: dict[str, str]) -> None:
        self.log = log
        package_root = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, [package_root, environment.get("PYTHONPATH")]))
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, argument],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment | {"PYTHONPATH": search},
                start_new_session=True,
                bufsize=0,
            )
        assert self.process.stdin is not None
        self.input = self.process.stdin
        os.set_blocking(self.input.fileno(), False)

    def wake(self, message: bytes) -> bool:
        """Write to its input; False if it is gone. If the pipe is full the message is dropped: what is in it wakes the process anyway."""
        try:
            self.input.write(message)
        except BrokenPipeError:
            return False
        return self.process.poll() is None

    def finish(self, message: bytes, seconds: float) -> bool:
        """Send the last message; whether the process then ended by itself, with status 0, within `seconds`."""
        self.wake(message)
        self.input.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds) == 0
        return False

    def kill(self) -> str:
        """Kill it and its children; returns why it failed, as far as its log says."""
        hangs = self.process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the group of the session that was started for it
        self.process.wait()
        self.input.close()
        if hangs:
            return "it did not end in time"
        errors = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", self.log.read_text(errors="replace"), re.MULTILINE)
        return errors[-1] if errors else f"see {self.log}"
