"""Where the jobs of a multirun run: which launchers can be used here."""

import shutil
import warnings
from importlib.util import find_spec
from typing import Any

from opo.errors import StoppedRun, UserError

EXTRAS = {"submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}  # launcher -> extra of pyproject.toml


def expect_schemas() -> None:
    """Files of conf/hydra/launcher are meant to be checked against the launchers' own schemas; Hydra warns of such a match."""
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated", category=UserWarning)


def refuse_unusable(name: str, launcher: Any) -> None:
    """Raise UserError where the chosen launcher cannot start a job on this machine."""
    package = ".".join(str(launcher._target_).split(".")[:2])
    missing = [module for module in (package, *(["ray"] if name == "ray" else [])) if find_spec(module) is None]
    if missing:
        extra = EXTRAS.get(name)
        means = f"the extra {extra} (pip install 'opo-workbench[{extra}]')" if extra else "it"
        raise UserError(f"hydra/launcher={name}: {missing[0]} is not installed; install {means}")
    if name == "submitit_slurm" and shutil.which("srun") is None:
        raise UserError(
            "hydra/launcher=submitit_slurm: there is no srun here, so this machine is in no Slurm cluster; "
            "submitit_local starts the same jobs here"
        )
    if name == "joblib":
        from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf

        for key, plain in vars(JobLibLauncherConf()).items():
            if key not in ("_target_", "n_jobs") and launcher.get(key, plain) != plain:
                raise UserError(
                    f"hydra.launcher.{key}={launcher[key]}: allowed is {plain}; of joblib's options n_jobs counts alone"
                )


def in_one_line(error: Exception) -> UserError | StoppedRun | None:
    """What a launcher's engine said when it did not take the jobs or lost one that had not begun; None: this is a bug."""
    text, name = " ".join(str(error).split()), type(error).__name__
    if name == "FailedJobError" and text.startswith("sbatch"):
        return UserError(f"hydra/launcher=submitit_slurm: {text}")
    if isinstance(error, BrokenPipeError):  # of the terminal's reader, not of a cluster
        return None
    if isinstance(error, ConnectionError) or text.startswith("When connecting to an existing cluster"):
        return UserError(f"hydra.launcher.ray.init: {text}")
    if "timed out during startup" in text:
        return StoppedRun("hydra/launcher=ray: Ray did not start in time; this machine may be busy, try again")
    if name == "UncompletedJobError" or type(error).__module__.startswith("ray."):
        return StoppedRun(f"hydra/launcher: {text}; the same command does what is missing")
    return None


expect_schemas()  # in the processes of jobs, which compose theirs again
