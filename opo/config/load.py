"""From the dicts that Hydra composes to a typed config that holds, before anything is loaded or written."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from opo.catalogue import catalogue
from opo.config.parts import OPTIONS
from opo.config.read import read, shown, unknown_key
from opo.config.rules import RULES
from opo.config.schema import AlgoConfig, RunConfig
from opo.errors import UserError, near
from opo.tasks import kind_of

UNIVERSAL = [field.name for field in fields(AlgoConfig) if field.name != "hyperparameters"]


def load_config(values: Mapping[str, Any]) -> RunConfig:
    """The typed config of a training run; raises UserError, one line, naming the first key that is wrong.

    Types and ranges are the schema's (opo/config/schema.py), and for the rest of `algo` and for `task` those of the algorithm's
    hyperparameters and of the task's own config; after them come the rules of opo/config/rules.py.
    """
    parts = {"algo": algorithm_config(values.get("algo")), "task": task_config(values.get("task"))}
    config = read(RunConfig, {**values, **parts})
    for rule in RULES:
        for complaint in rule(config):
            raise UserError(complaint)
    return config


def algorithm_config(values: Any) -> AlgoConfig:
    """The keys that every algorithm has, and in `hyperparameters` every hyperparameter of this one, given or default."""
    own = catalogue()[_named(values, "algo", catalogue())].hyperparameters
    names = [field.name for field in fields(own)]
    for key in values:
        if key not in UNIVERSAL and key not in names:
            raise unknown_key(f"algo.{shown(key)}", str(key), [*UNIVERSAL, *names])
    parts = {kind: part_options(kind, values[kind]) for kind in OPTIONS if values.get(kind) is not None}
    config = read(AlgoConfig, {key: value for key, value in values.items() if key not in [*names, *parts]}, "algo")
    for kind, options in parts.items():
        setattr(config, kind, options)
    config.hyperparameters = asdict(read(own, {key: value for key, value in values.items() if key in names}, "algo"))
    return config


def part_options(kind: str, values: Any) -> Any:
    """The options of a part, given by its name alone or by a group of keys with one."""
    group = values if isinstance(values, Mapping) else {"name": values}
    return read(OPTIONS[kind][_named(group, f"algo.{kind}", OPTIONS[kind])], group, f"algo.{kind}")


def task_config(values: Any) -> Any:
    """The config of the task that `values` name."""
    return read(kind_of(values), values, "task")


def _named(values: Any, key: str, allowed: Mapping[str, Any]) -> str:
    """The name in a group of keys that has one of its own."""
    name = values.get("name") if isinstance(values, Mapping) else values
    if not isinstance(values, Mapping) or not isinstance(name, str) or name not in allowed:
        raise UserError(f"{key}={shown(name)}: not one of {', '.join(allowed)}{near(str(name), allowed)}")
    return name
