"""What a study was measured with: code, versions, machine, model and its size, task, sampling and the command, a record a process.

Each process that measures leaves `provenance/NAME.json` in the study's folder, so shards of several machines are all named; the
result holds them all.
"""

import json
import shlex
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from analysis.study.config import VarianceConfig
from opo.config.schema import RolloutConfig
from opo.model.policy import Policy
from opo.run.policies import Weights
from opo.run.provenance import provenance
from opo.system.atomic import write_text
from opo.system.records import read_json

FOLDER = "provenance"


def note_measurement(config: VarianceConfig, weights: Weights, policy: Policy, folder: Path, rank: int) -> None:
    """Write this process's record for one model of the study."""
    model = weights.model.path or weights.model.name
    which, count = config.shard_of
    name = f"{which}-of-{count}-rank{rank}-{zlib.crc32(model.encode()):08x}.json"
    machine = {"device": config.device, "threads": config.threads, "seed": config.seed}
    task = None if config.rollouts else weights.task(config.task)
    record = record_of(machine, weights, policy, task, weights.rollout(config.rollout, config.num_responses))
    file = folder / FOLDER / name
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(record, indent=1, default=str) + "\n")


def record_of(
    machine: dict[str, Any], weights: Weights, policy: Policy, task: Any, rollout: RolloutConfig
) -> dict[str, Any]:
    """The record of a process that measures these weights; of the code the commit and whether there were changes, not the changes."""
    record = provenance(machine)
    for place, code in record["code"].items():
        record["code"][place] = code and {"commit": code["commit"], "dirty": bool(code["diff"])}
    return record | {
        "command": command(),
        "model": weights.model.path or weights.model.name,
        "parameters": sum(parameter.numel() for parameter in policy.model.parameters()),
        "task": None if task is None else asdict(task),
        "sampling": {"temperature": rollout.temperature, "max_new_tokens": rollout.max_new_tokens},
    }


def records(folder: Path) -> list[dict[str, Any]]:
    """All records of a study's folder, in the order of their names."""
    return [read_json(file) for file in sorted((folder / FOLDER).glob("*.json"))]


def command() -> str | None:
    """The command line of this process as it was typed; None where Hydra did not start it."""
    if not HydraConfig.initialized():
        return None
    own = HydraConfig.get()
    return shlex.join(["opo", str(own.job.config_name), *own.overrides.task])
