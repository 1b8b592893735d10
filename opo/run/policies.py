"""Which weights `checkpoint=` means, and what the run that made them says about task and sampling.

A run folder stands for its start and every checkpoint, a checkpoint for itself, and so do a folder of transformers and a hub id. Of a
list of runs that differ in their seed alone, the checkpoints of one step are one policy, sampled from each seed in turn.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from opo.config.model_source import complaints, unreachable
from opo.config.read import read
from opo.config.schema import ModelConfig, OwnReward, RolloutConfig
from opo.errors import UserError
from opo.run.checkpoint import checkpoint_step, checkpoints, refuse_incomplete, refuse_misplaced
from opo.system.manifest import FILE as MANIFEST
from opo.system.manifest import refuse_damaged
from opo.system.records import read_json
from opo.tasks import kind_of
from opo.tasks.arithmetic import ArithmeticConfig


@dataclass(frozen=True)
class Weights:
    """One set of weights: the model they fill, and the folder they are in (null: as the model comes)."""

    model: ModelConfig
    folder: Path | None = None
    run: dict[str, Any] | None = None  # the config of the run that made them
    run_folder: Path | None = None

    @property
    def path(self) -> str:
        return str(self.folder or self.model.path or self.model.name)

    @property
    def source(self) -> ModelConfig:
        """What is loaded: the folder of the weights, or the base model that adapters of that folder belong to."""
        if self.folder is None or self.model.lora_rank:
            return self.model
        return replace(self.model, name="pretrained", path=str(self.folder))

    @property
    def adapters(self) -> Path | None:
        """The folder whose adapters are put on `source`; None where there are none."""
        return self.folder if self.model.lora_rank else None

    def task(self, own: Any = None) -> Any:
        """The config of the task: the given one, else the run's, else arithmetic."""
        if own is not None or self.run is None:
            return own if own is not None else ArithmeticConfig()
        values = self.run["task"]
        return read(kind_of(values), values, "task")

    def reward_functions(self, own: OwnReward) -> dict[str, float] | None:
        """The reward functions in place of the task's own, with their weights: those that are asked for, else the run's."""
        record = (self.run or {}).get("reward") or {}
        return own.functions or OwnReward(record.get("function"), record.get("weights")).functions

    def rollout(self, own: Any, group_size: int) -> RolloutConfig:
        """Sampling with the given limit and temperature, else the run's, else 48 tokens at temperature 1."""
        run = self.run["rollout"] if self.run else {}
        return RolloutConfig(
            group_size=group_size,
            max_new_tokens=run.get("max_new_tokens", 48) if own.max_new_tokens is None else own.max_new_tokens,
            temperature=float(run.get("temperature", 1.0) if own.temperature is None else own.temperature),
            top_p=own.top_p,
            top_k=own.top_k,
            max_sequences=own.max_sequences,
        )


@dataclass(frozen=True)
class EvaluatedPolicy:
    """A policy that is studied or evaluated. Where it stands for several runs, the prompts are dealt to their weights in turn."""

    name: str
    label: str
    step: int | None
    weights: list[Weights]

    @property
    def paths(self) -> list[str]:
        return [weights.path for weights in self.weights]


def listed(checkpoint: Any) -> list[str]:
    """`checkpoint=` as a list: null is none, one is one."""
    given = checkpoint if isinstance(checkpoint, list | tuple) else [checkpoint]
    return [str(item) for item in given if item is not None]


def evaluated_policies(checkpoint: Any, model: ModelConfig | None) -> list[EvaluatedPolicy]:
    """The policies that `checkpoint` names, in order of training step, or the model as it comes (null: the built-in one).

    Raises UserError, one line, for a path that stands for no weights or for weights that cannot be loaded; no weight is read.
    """
    paths = listed(checkpoint)
    if checkpoint is not None and not paths:
        raise UserError(
            f"checkpoint={checkpoint}: names no weights; allowed are a path, a list of some, or null for the model"
        )
    if not paths:
        model = model or ModelConfig()
        _refuse(unreachable(model.path, "model.path") if model.path else ())
        label = "/".join(Path(model.path).parts[-2:]) if model.path else model.name
        return [EvaluatedPolicy("model", label, None, [Weights(model)])]
    weights_by_step = [pair for path in paths for pair in _weights(path, model)]
    places = [(step, Path(w.folder or w.run_folder or w.path).absolute()) for step, w in weights_by_step]
    for step, place in places:
        if places.count((step, place)) > 1:
            raise UserError(f"checkpoint={checkpoint}: names {place} twice{'' if step is None else f' (step {step})'}")
    seeds = {w.run["seed"] if w.run else None for _, w in weights_by_step}
    if len(paths) > 1 and len(seeds) > 1 and all(step is not None for step, _ in weights_by_step):
        steps = sorted({step for step, _ in weights_by_step if step is not None})
        return [_of_step(step, [w for s, w in weights_by_step if s == step]) for step in steps]
    return [_of_step(step, [w]) if step is not None else _alone(w) for step, w in weights_by_step]


def refuse_damaged_weights(policies: Iterable[EvaluatedPolicy]) -> None:
    """Raise UserError that names the first file of their checkpoints which is not as it was written, before any of them is used."""
    for weights in (weights for policy in policies for weights in policy.weights):
        if weights.folder is not None and (weights.folder.parent / MANIFEST).is_file():
            refuse_damaged(weights.folder.parent, only=weights.folder)


def _alone(weights: Weights) -> EvaluatedPolicy:
    name = weights.folder.name if weights.folder else weights.path.replace("/", "-")
    return EvaluatedPolicy(name, name, None, [weights])


def _of_step(step: int, weights: list[Weights]) -> EvaluatedPolicy:
    return EvaluatedPolicy(f"step-{step:06d}", "start" if step == 0 else f"step {step}", step, weights)


def _weights(text: str, model: ModelConfig | None) -> Iterator[tuple[int | None, Weights]]:
    """The weights that one path stands for, with the step of training that they were saved at."""
    path, where = Path(text), f"checkpoint={text}"
    if (path / "checkpoints").is_dir():
        run = _run_config(path / "config.yaml")
        base = model or read(ModelConfig, run["model"], "model")
        yield 0, Weights(base, None, run, path)
        refuse_incomplete(path / "checkpoints")
        for saved in checkpoints(path / "checkpoints"):
            _refuse(complaints(saved / "policy", f"checkpoint={saved}"))
            refuse_misplaced(saved, _run_id(path))
            yield checkpoint_step(saved), Weights(base, saved / "policy", run, path)
    elif (path / "policy").is_dir():
        file = path.absolute().parent.parent / "config.yaml"
        run = _run_config(file) if file.is_file() else None
        own = read(ModelConfig, run["model"], "model") if run else ModelConfig("pretrained", str(path / "policy"))
        _refuse(complaints(path / "policy", where))
        step = checkpoint_step(path.absolute()) if path.absolute().name.removeprefix("step-").isdecimal() else None
        if step is not None and (path / MANIFEST).is_file():
            refuse_misplaced(path.absolute(), _run_id(file.parent))
        yield step, Weights(model or own, path / "policy", run, file.parent if run else None)
    elif (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        _refuse(complaints(path, where))
        yield None, Weights(model or ModelConfig("pretrained", text), path, None)
    elif path.is_dir():
        raise UserError(
            f"{where}: neither a run folder (checkpoints/), a checkpoint (policy/) nor a folder of transformers (config.json)"
        )
    else:
        _refuse(unreachable(text, "checkpoint"))
        yield None, Weights(replace(model or ModelConfig(), name="pretrained", path=text))


def _run_config(file: Path) -> dict[str, Any]:
    try:
        run = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        run = None
    kinds = {"model": dict, "task": dict, "rollout": dict, "seed": int}
    if not isinstance(run, dict) or not all(isinstance(run.get(key), kind) for key, kind in kinds.items()):
        raise UserError(
            f"{file}: is not the config of a run (model, task, rollout, seed); restore it or name the model's folder"
        )
    read(RolloutConfig, run["rollout"], f"{file}: rollout")
    return run


def _run_id(folder: Path) -> str | None:
    """The id of the run in a folder, which its checkpoints bear; None where it has no record."""
    return read_json(folder / "run.json").get("wandb_run_id") if (folder / "run.json").is_file() else None


def _refuse(found: Iterable[str]) -> None:
    for complaint in found:
        raise UserError(complaint)
