"""From a root config and overrides to plain dicts: the one place that calls Hydra's compose, and the names of run folders."""

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opo.cli.hydra_errors import one_choice, one_line, unreadable
from opo.cli.launchers import expect_schemas
from opo.config.read import shown
from opo.errors import UserError

NOT_IN_NAME = {"algo", "task", "seed", "steps", "tokens", "study", "sweep", "threads", "device", "reward.workers"}
GROUPS_NOT_IN_NAME = {"tracking", "checkpoint", "parallel", "hydra"}
LONGEST_NAME = 200  # file systems allow 255 bytes


def composed(root: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What `opo ROOT OVERRIDES...` would run. Raises UserError for an override that cannot be."""
    with composing():
        return plain(compose_job(root, overrides), root)


def run_name(choices: Any, seed: int, overrides: Any) -> str:
    """`<algo>-<task>-s<seed>`, then `-<key>=<value>` for every other override that changes the run, sorted by key.

    Values are as Hydra reads them (1e-3 is 0.001), so that a job of a sweep and the same run alone share a name.
    """
    values: dict[str, str] = {}
    for override in map(parse, overrides):
        key = override.key_or_group
        if key not in NOT_IN_NAME and key.partition(".")[0] not in GROUPS_NOT_IN_NAME:
            values[key] = "" if override.is_delete() else str(override.get_value_element_as_str()).strip("'\"")
    if values.get("model") == "pretrained" and "model.path" in values:
        values["model"] = values.pop("model.path")  # as it was typed
    parts = [choices["algo"], choices["task"], f"s{seed}", *(f"{key}={values[key]}" for key in sorted(values))]
    name = re.sub(r"[^\w.=,+-]+", "_", "-".join(parts))
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{zlib.crc32(name.encode()):08x}"


OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("quotient", lambda whole, part: whole // part if part else 0, replace=True)


def parse(line: str) -> Override:
    """One override, taken apart. Raises UserError where it is none."""
    if len(line.partition("=")[0]) > LONGEST_NAME:
        raise UserError(f"{shown(line)}: no key is so long; allowed are at most {LONGEST_NAME} characters")
    loaded = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    try:
        override = OverridesParser.create().parse_override(line)
    except (
        HydraException,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: a number of more digits than Python reads
        raise UserError(unreadable(line)) from error
    override.config_loader = loaded  # which a glob over a group's choices asks
    return override


@contextmanager
def composing(config_path: str | None = None) -> Iterator[None]:
    """Hydra's compose API over the same files that hydra.main will see."""
    GlobalHydra.instance().clear()
    expect_schemas()
    where: AbstractContextManager[Any]
    if config_path is None:
        where = initialize_config_module("conf", version_base="1.3")
    else:
        where = initialize_config_dir(config_path, version_base="1.3")
    with where:
        try:
            yield
        finally:
            HydraConfig.instance().cfg = None


def compose_job(root: str, overrides: Sequence[str]) -> DictConfig:
    """The config of one job, Hydra's own part included. Raises UserError, one line, for an override that cannot be."""
    groups = [line for line in overrides if "." not in line.partition("=")[0]]
    try:
        config = hydra_compose(root, list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error, lambda: _known_keys(root, groups))) from error
    except (ValueError, TypeError, AttributeError, AssertionError, OSError) as error:  # for a choice that is no name
        empty = [line for line in overrides if line.partition("=")[2].lower() in ("", "null", "none")]
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{shown(' '.join(empty or groups) or root)}: a choice is needed ({shown(reason)})") from error
    known = GlobalHydra.instance().config_loader()
    for override in map(parse, groups):
        if isinstance(override.value(), list) and known.get_group_options(override.key_or_group):
            raise UserError(one_choice(override.key_or_group))  # Hydra would merge them
    return config


def plain(config: DictConfig, root: str, whole: bool = True) -> dict[str, Any]:
    """The composed config as dicts without Hydra's own part, interpolations resolved; `whole`: a value that is missing is refused."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        values = OmegaConf.to_container(own, resolve=True, throw_on_missing=whole)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error, lambda: _known_keys(root, []))) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _known_keys(root: str, groups: Sequence[str]) -> list[str]:
    """Every dotted key of the config under these choices of groups, or of the root's own where they hold the mistake."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for name, value in node.items():
            yield f"{prefix}{name}"
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")

    for choices in (list(groups), []):
        try:
            return list(walk(OmegaConf.to_container(hydra_compose(root, choices)), ""))
        except (HydraException, OmegaConfBaseException):
            continue
    return []
