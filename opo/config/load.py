"""From the dicts that Hydra composes to a typed config that holds, before anything is loaded or written."""

from collections.abc import Mapping
from typing import Any, get_type_hints

from opo.algorithms import ALGORITHMS
from opo.config.build import build, convert, unknown_key
from opo.config.rules import RULES
from opo.config.schema import AlgoConfig, RunConfig
from opo.errors import UserError, near
from opo.tasks import TASKS

UNIVERSAL = [name for name in AlgoConfig.__dataclass_fields__ if name != "knobs"]


def load_config(values: Mapping[str, Any]) -> RunConfig:
    """The typed config of a training run; raises UserError, one line, naming the first key that is wrong.

    Types are the dataclasses' (opo/config/schema.py), and for the rest of `algo` and for `task` those of the algorithm's
    keywords and the task's own config; after them come the rules of opo/config/rules.py.
    """
    parts = {"algo": _algorithm(values.get("algo")), "task": _task(values.get("task"))}
    config = build(RunConfig, {**values, **parts})
    for rule in RULES:
        for complaint in rule(config):
            raise UserError(complaint)
    return config


def _algorithm(values: Any) -> AlgoConfig:
    """The universal keys, and in `knobs` every keyword of the algorithm's loss, given or default."""
    name = _named(values, "algo", ALGORITHMS)
    knobs = ALGORITHMS[name].knobs
    for key in values:
        if key not in UNIVERSAL and key not in knobs:
            raise unknown_key(f"algo.{key}", key, [*UNIVERSAL, *knobs])
    config = build(AlgoConfig, {key: value for key, value in values.items() if key not in knobs}, "algo")
    kinds = get_type_hints(ALGORITHMS[name].loss)
    given = {key: values.get(key, parameter.default) for key, parameter in knobs.items()}
    config.knobs = {key: convert(kinds[key], value, f"algo.{key}") for key, value in given.items()}
    return config


def _task(values: Any) -> Any:
    name = _named(values, "task", TASKS)
    return build(TASKS[name][0], values, "task")


def _named(values: Any, key: str, allowed: Mapping[str, Any]) -> str:
    """The name in a group of keys that has one of its own."""
    name = values.get("name") if isinstance(values, Mapping) else values
    if not isinstance(values, Mapping) or name not in allowed:
        raise UserError(f"{key}={name}: not one of {', '.join(allowed)}{near(str(name), allowed)}")
    return str(name)
