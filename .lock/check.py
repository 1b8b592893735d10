"""Import what was installed, as the last step of the set-up: an environment that cannot be used is not marked as made."""

import signal
import subprocess
import sys
from importlib.util import find_spec

MODULES = ("torch", "transformers", "wandb", "hydra", "opo", "vllm")  # vllm last: not on every system
IMPORT_EACH = (
    "import importlib, sys\nfor name in sys.argv[1:]:\n    print(name, flush=True)\n    importlib.import_module(name)"
)


def main() -> str | None:
    """None, or one sentence: which module cannot be imported, and why."""
    names = [name for name in MODULES if name != "vllm" or find_spec(name)]
    ran = subprocess.run([sys.executable, "-c", IMPORT_EACH, *names], capture_output=True, text=True, check=False)
    if ran.returncode == 0:
        return None
    reason = ran.stderr.strip().splitlines()[-1:] or ["no message"]
    if ran.returncode < 0:  # a build for another processor, say
        reason = [f"ended by {signal.Signals(-ran.returncode).name}"]
    module = (ran.stdout.split() or ["python"])[-1]
    return f"set-up is not finished: {module} cannot be imported from {sys.prefix} ({reason[0]}); mend that, then run make again"


if __name__ == "__main__":
    sys.exit(main())
