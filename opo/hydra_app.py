"""What every subcommand shares: compose and judge before anything is written, then hand over to Hydra.

Hydra's own errors become one line: the key, what is allowed, what is near.
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opo.build import near
from opo.errors import UserError

NOT_IN_NAME = ("steps", "tracking", "checkpoint", "study", "algo", "task", "seed", "sweep", "hydra")


def run_name(choices: Any, seed: int, overrides: Any) -> str:
    """`<algo>-<task>-s<seed>`, and every override that changes the run: `-<key>=<value>`, sorted."""
    chosen = [override.lstrip("+~") for override in overrides]
    extra = sorted(
        o
        for o in chosen
        if o.split("=")[0] not in NOT_IN_NAME and o.split(".")[0] not in ("hydra", "tracking", "checkpoint")
    )
    name = "-".join([choices["algo"], choices["task"], f"s{seed}", *extra])
    return re.sub(r"[^\w.=,+-]+", "_", name)


OmegaConf.register_new_resolver("run_name", run_name, replace=True)


class Announce(Callback):
    """Says at once when a job of a multirun fails, while the others go on."""

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        if job_return.status != JobStatus.FAILED or HydraConfig.get().mode != RunMode.MULTIRUN:
            return
        error = job_return._return_value  # the property would raise it here
        reason = str(error).partition("\n")[0] or type(error).__name__
        print(f"FAILED {' '.join(HydraConfig.get().overrides.task)}: {reason}", file=sys.stderr, flush=True)


def check(root: str, overrides: list[str], judge: Callable[[dict[str, Any]], Any]) -> None:
    """Compose every job that these arguments mean and judge each; raises UserError before anything is written."""
    with initialize_config_module("conf", version_base="1.3"):
        whole = _compose(root, [o for o in overrides if not _sweeps(o)], with_hydra=True)
        params = whole.hydra.sweeper.get("params") or {}
        lines = [*(f"{k}={v}" for k, v in params.items()), *overrides]
        jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(lines), None)[0]
        for job in jobs:
            judge(plain(_compose(root, list(job))))


def _sweeps(override: str) -> bool:
    try:
        return OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException as error:
        raise UserError(f"{override}: cannot be read; write key=value, and quotes around special characters") from error


def _compose(root: str, overrides: list[str], with_hydra: bool = False) -> DictConfig:
    try:
        return compose(root, overrides, return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error, root, [o for o in overrides if "." not in o.split("=")[0]])) from error


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed config without Hydra's own part, interpolations resolved."""
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error, "config")) from error
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items() if k not in ("hydra", "experiment", "sweep", "debug")}


def one_line(error: Exception, root: str, choices: Sequence[str] = ()) -> str:
    """Hydra's error in one sentence that names the key and what is allowed."""
    text = str(error)
    if found := re.search(r"Could not find '([\w./-]+?)/([^'/]+)'", text):
        group, choice = found.groups()
        options = re.findall(r"^\t([\w-]+)$", text, re.MULTILINE)
        return f"{group}={choice}: not one of {', '.join(options)}{near(choice, options)}"
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found.group(1)
        keys = _known_keys(root, choices)
        siblings = [k for k in keys if k.rpartition(".")[0] == key.rpartition(".")[0]]
        allowed = f"; allowed beside it are {', '.join(k.rpartition('.')[2] for k in siblings)}" if siblings else ""
        return f"{key}: unknown key{near(key, keys)}{allowed}"
    if found := re.search(r"full_key: (\S+)", text):
        return f"{found.group(1)}: {text.splitlines()[0]}"
    return text.splitlines()[0]


def _known_keys(root: str, choices: Sequence[str]) -> list[str]:
    """Every dotted key of the root's config with these group options."""

    def walk(node: Any, prefix: str) -> list[str]:
        keys = []
        for name, value in node.items():
            keys.append(f"{prefix}{name}")
            if isinstance(value, dict):
                keys += walk(value, f"{prefix}{name}.")
        return keys

    try:
        return walk(plain(compose(root, list(choices))), "")
    except (HydraException, OmegaConfBaseException):  # the choices hold the mistake: the root's own defaults, then
        return walk(plain(compose(root)), "")


def launch(root: str, arguments: list[str], entry: Callable[[dict[str, Any], Path], None]) -> None:
    """Run `entry(config, folder)` under hydra.main with these command-line arguments."""

    def task(config: DictConfig) -> None:
        entry(plain(config), Path(HydraConfig.get().runtime.output_dir))

    sys.argv = [f"opo {root}", *arguments]
    hydra.main(version_base="1.3", config_path="pkg://conf", config_name=root)(task)()
