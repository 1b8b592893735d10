"""`opo COMMAND [key=value ...]`: the one place that knows both packages.

Exit status: 0 done, 2 a configuration or file that cannot be used (one line on stderr), 1 anything else.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from opo.cli.commands import COMMANDS, FIRST_WORD, ON_RANKS, OTHERS_SPEAK_S
from opo.errors import StoppedRun, UserError
from opo.system.ranks import rank_and_size
from opo.system.storage import storage_faults_in_one_sentence
from opo.system.terminal import say

if TYPE_CHECKING:
    from opo.cli.launch import Invocation


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    guarded(lambda: sys.exit(run(given)))
    sys.exit(0)


def guarded(work: Callable[[], Any]) -> None:
    """Do the work; what is no bug ends the process with one line and the status that it stands for. Of several ranks one speaks."""
    try:
        with storage_faults_in_one_sentence():
            work()
    except UserError as error:
        fail(str(error), 2, getattr(error, "speaks", None))
    except StoppedRun as error:
        fail(str(error), 1, getattr(error, "speaks", None))
    except KeyboardInterrupt:
        fail("interrupted", 1)
    except BrokenPipeError:  # `opo ... | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def fail(message: str, status: int, speaks: bool | None = None) -> NoReturn:
    """Print one line and exit; what a terminal would obey (an escape sequence in a value) is shown, not sent.

    Of several ranks the first speaks, unless it is known who does. The others say a little later what they met: where the first met
    it too, they have been ended by then.
    """
    rank, size = rank_and_size()
    if speaks is None and rank > 0:
        time.sleep(OTHERS_SPEAK_S)
        message = f"rank {rank} of {size}: {message}"
    if speaks is not False:
        say(" ".join(message.split()), sys.stderr)
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """The exit status of these arguments. Raises UserError for what cannot be used."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-sc", "--shell-completion"):
        return complete(arguments)
    name, rest = arguments[0], arguments[1:]
    if name == "algorithms":
        from opo.cli.gallery import gallery

        print(gallery(rest))
        return 0
    if name in ("runs", "plan"):
        rest = [{"--json": "json=true", "--rank": "rank=true"}.get(argument, argument) for argument in rest]
    if name not in COMMANDS or find_spec("conf") is None or not config_file(name).exists():
        from opo.errors import near

        available = [*(known for known in COMMANDS if config_file(known).exists()), "algorithms"]
        raise UserError(f"opo {name}: no such command{near(name, available)}; choose one of {', '.join(available)}")
    if "-sc" in rest or "--shell-completion" in rest:
        return complete(rest)
    if rank_and_size()[1] > 1 and name not in ON_RANKS:
        raise UserError(f"opo {name}: runs in one process; torchrun is for {', '.join(ON_RANKS)}")
    from opo.cli.launch import check, launch

    invocation, shows_only = take_apart(name, rest)
    command = COMMANDS[name]
    if "--help" in invocation.flags and invocation.config_path is None:
        from opo.cli.help import help_of

        print(help_of(invocation.root, invocation.overrides, config_file(name).parent, load(command.schema)))
        return 0
    added = check(invocation, None if shows_only else lambda values: load(command.judge)(values))  # seconds of imports
    failures, folders = launch(invocation, _not_run if shows_only else load(command.run), added)
    if command.after and folders:
        load(command.after)(folders)
    if failures:
        width = max(len(failure.name) for failure in failures)
        lines = [f"  {failure.name:<{width}}  {failure.reason}" for failure in failures]
        say("\n".join([f"{len(failures)} failed:", *lines]), sys.stderr)
    return 1 if failures else 0


def usage() -> str:
    """The list of commands."""
    lines = [f"  opo {name:<10}{command.summary}" for name, command in COMMANDS.items() if config_file(name).exists()]
    return "\n".join(
        [
            "usage: opo COMMAND [key=value ...]",
            "",
            *lines,
            "  opo algorithms [NAME]  every algorithm, or what one of them is",
            "",
            "  opo COMMAND --help       its keys and choices",
            "  opo COMMAND --cfg job    the config it would run, and no more",
            "  opo COMMAND -m a=1,2     one job for each combination of values",
            '  eval "$(opo -sc install=bash)"  completes keys and values on TAB',
        ]
    )


def config_file(name: str) -> Path:
    """The root config of a command."""
    return Path(import_module("conf").__path__[0], f"{name}.yaml")


def load(reference: str) -> Any:
    """The function or class that `module:name` names."""
    module, _, function = reference.partition(":")
    return getattr(import_module(module), function)


def _not_run(config: dict[str, Any], folder: Path) -> None:
    raise AssertionError("Hydra was asked to show, not to run")


class _Parser(argparse.ArgumentParser):
    """Hydra's own flags; what is wrong with them is the user's mistake, not an exit from here."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; `{self.prog} --help` lists what is allowed")


def take_apart(name: str, arguments: list[str]) -> "tuple[Invocation, bool]":
    """Hydra's flags and the overrides, in whatever order they were given, and whether something is to be shown, not run."""
    from opo.cli.launch import Invocation

    parser = _Parser(prog=f"opo {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    where = parser.add_argument_group()
    where.add_argument("--config-path", "-cp")
    where.add_argument("--config-name", "-cn", default=name)
    where.add_argument("--config-dir", "-cd")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--multirun", "-m", action="store_true")
    modes.add_argument("--run", "-r", action="store_true")
    modes.add_argument("--help", "-h", action="store_true")
    modes.add_argument("--hydra-help", action="store_true")
    modes.add_argument("--version", action="store_true")
    modes.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    modes.add_argument(
        "--info",
        "-i",
        nargs="?",
        const="all",
        choices=["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"],
    )
    parser.add_argument("--package", "-p")
    parser.add_argument("--resolve", action="store_true")
    given = parser.parse_intermixed_args(arguments)
    if given.resolve and not (given.cfg or given.help):
        raise UserError("--resolve: goes with --cfg or --help alone, which show a config")
    flags = [f"--{flag}" for flag in ("multirun", "run", "help", "version", "resolve") if getattr(given, flag)]
    flags += ["--hydra-help"] if given.hydra_help else []
    flags += [
        part for flag in ("cfg", "info", "package") if (value := getattr(given, flag)) for part in (f"--{flag}", value)
    ]
    if name in FIRST_WORD and given.overrides and re.fullmatch(r"[a-z]+", given.overrides[0]):
        given.overrides[0] = f"{FIRST_WORD[name]}={given.overrides[0]}"
    overrides = [part for override in given.overrides for part in rewritten(override)]
    offer_own_tasks(overrides)
    if given.config_dir is not None:
        if not Path(given.config_dir).is_dir():
            raise UserError(f"--config-dir {given.config_dir}: no such folder")
        overrides.append(f"hydra.searchpath=['file://{Path(given.config_dir).absolute()}']")
    path = None if given.config_path is None else str(Path(given.config_path).absolute())
    if path is not None and not Path(path).is_dir():
        raise UserError(f"--config-path {given.config_path}: no such folder")
    shows_only = given.help or given.hydra_help or given.version or bool(given.cfg) or bool(given.info)
    return Invocation(given.config_name.removesuffix(".yaml"), overrides, flags, path, given.multirun), shows_only


def offer_own_tasks(overrides: Sequence[str]) -> None:
    """Make `task=my_module:MyTask` a choice of the group, with the options of the class and their defaults as its keys."""
    for override in overrides:
        key, _, value = override.partition("=")
        for reference in (part for part in value.split(",") if key == "task" and ":" in part):
            from hydra.core.config_store import ConfigStore

            from opo.tasks.own import defaults_of

            ConfigStore.instance().store(group="task", name=reference, node=defaults_of(reference))


def rewritten(override: str) -> list[str]:
    """An override as Hydra reads it: `model=FOLDER` and `model=org/name` are the option `pretrained` and its path, and a path
    with an equals sign (every run folder's name may have some) gets quotes.
    """
    key, equals, value = override.partition("=")
    plain_path = re.fullmatch(r"[^'\"\[\]{}()]*", value) is not None
    whole = unquoted(value)
    if key == "model" and "/" in whole and (whole != value or _exists(whole)):
        return ["model=pretrained", f"model.path={quoted(whole)}"]
    if key == "model" and plain_path:
        options = {file.stem for file in config_file("model").with_suffix("").glob("*.yaml")}
        paths = value.split(",")
        if all(path and path not in options and ("/" in path or _exists(path)) for path in paths):
            return ["model=pretrained", "model.path=" + ",".join(map(quoted, paths))]
    if equals and plain_path and "=" in value:
        return [f"{key}=" + ",".join(map(quoted, value.split(",")))]
    return [override]


def _exists(path: str) -> bool:
    """False too for what no file system takes as a name."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def quoted(text: str) -> str:
    """A string in Hydra's grammar."""
    return "'" + text.replace("'", "\\'") + "'"


def unquoted(value: str) -> str:
    """What stands between the quotes, where the whole value is in quotes; else the value."""
    found = re.fullmatch(r"""(['"])(.*)\1""", value, re.DOTALL)
    return found[2].replace(f"\\{found[1]}", found[1]) if found else value


def complete(arguments: list[str]) -> int:
    """Tab completion: Hydra's own for a command's keys, and the names of the commands."""
    from opo.cli.launch import Invocation, launch

    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    name = words[1] if len(words) > 1 else ""
    if any(argument.startswith("query=") for argument in arguments):
        if name not in COMMANDS or (len(words) == 2 and not line.endswith(" ")):
            print(" ".join(known for known in COMMANDS if known.startswith(name) and config_file(known).exists()))
            return 0
        os.environ["COMP_LINE"] = line.replace(f" {name}", "", 1)
    launch(Invocation(name or "train", [], arguments), _not_run)
    return 0


if __name__ == "__main__":
    main()
