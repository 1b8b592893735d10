"""`opo COMMAND [key=value ...]`: the one place that knows both packages.

Exit status: 0 done, 2 a configuration or file that cannot be used (one line on stderr), 1 anything else.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from opo.errors import StoppedRun, UserError


@dataclass(frozen=True)
class Command:
    """A Hydra application: its root config is `conf/<name>.yaml`; `judge` and `run` are `module:function`."""

    summary: str
    judge: str  # (config dict) -> None, raises UserError
    run: str  # (config dict, folder) -> None


COMMANDS = {
    "train": Command("one training run, or many with -m", "opo.validate:load_config", "opo.commands:train"),
    "variance": Command(
        "gradient variance of every estimator on frozen rollouts", "analysis.study:load_config", "analysis.study:main"
    ),
    "verify": Command(
        "train OPO and rivals, measure variance, judge each claim",
        "analysis.verify:load_config",
        "analysis.verify:main",
    ),
    "evaluate": Command(
        "pass@k, mean@k, maj@k and diversity of a checkpoint", "analysis.evaluate:load_config", "analysis.evaluate:main"
    ),
    "report": Command("one HTML page from what is on disk", "analysis.report:load_config", "analysis.report:main"),
    "doctor": Command(
        "can this model's numbers be believed here", "analysis.doctor:load_config", "analysis.doctor:main"
    ),
}
WITH_VALUE = (
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
    "--package",
    "-p",
    "--cfg",
    "-c",
    "--info",
    "-i",
)
SHOWS_ONLY = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
OWN_CONFIG = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0)
    name, rest = given[0], given[1:]
    if name not in COMMANDS:
        fail(f"opo {name}: no such command; choose one of {', '.join(COMMANDS)}", 2)
    try:
        run(name, rest)
    except UserError as error:
        fail(str(error), 2)
    except StoppedRun as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail(f"opo {name}: interrupted", 1)


def usage() -> str:
    """The list of commands."""
    lines = [f"  opo {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: opo COMMAND [key=value ...] [-m] [--cfg job] [--help]",
            "",
            *lines,
            "",
            "opo COMMAND --help lists a command's keys.",
        ]
    )


def run(name: str, arguments: list[str]) -> None:
    """Compose and judge the config, then hand over to Hydra."""
    from opo.hydra_app import check, launch

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach `main`, which knows a user's mistake from a bug
    command = COMMANDS[name]
    arguments = [part for argument in arguments for part in folder_as_model(argument)]
    if not any(flag in arguments for flag in OWN_CONFIG):
        only_shown = any(argument.split("=")[0] in SHOWS_ONLY for argument in arguments)
        check(name, overrides_of(arguments), (lambda _: None) if only_shown else load(command.judge))
    launch(name, arguments, load(command.run))


def load(reference: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, function = reference.partition(":")
    return getattr(import_module(module), function)


def overrides_of(arguments: list[str]) -> list[str]:
    """The key=value arguments, without Hydra's flags and what follows them."""
    overrides, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("-"):
            skip = not skip and argument in WITH_VALUE
        else:
            overrides.append(argument)
    return overrides


def folder_as_model(argument: str) -> list[str]:
    """`model=FOLDER` and `model=org/name` as what Hydra understands: the group option `pretrained` and its path."""
    key, _, value = argument.partition("=")
    options = {file.stem for file in (Path(import_module("conf").__path__[0]) / "model").glob("*.yaml")}
    if key != "model" or value in options or not ("/" in value or Path(value).exists()):
        return [argument]
    return ["model=pretrained", f"model.path='{value}'"]


def fail(message: str, status: int) -> None:
    """Print one line and exit."""
    print(message, file=sys.stderr)
    sys.exit(status)
