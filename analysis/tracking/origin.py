"""What a result was measured on: runs and their checkpoints, models, files; from it its group in W&B and its tags."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.study.inputs import digest
from opo.errors import UserError
from opo.run.checkpoint import checkpoint_step
from opo.system.records import read_json, read_yaml
from opo.tracking import run_tags
from opo.tracking.lineage import Files, checkpoint_of, checkpoints_of, model_of, start_of


@dataclass(frozen=True)
class Origin:
    """The runs a result is about, as far as their folders are there, and the artifacts that name what was measured."""

    files: Sequence[Files]
    configs: Sequence[dict[str, Any]]  # of the runs

    @classmethod
    def of(
        cls, checkpoint: Sequence[str], model: str, steps: Collection[int | None], rollouts: Sequence[Path]
    ) -> "Origin":
        """From the keys of a command; `steps` are those of training that were measured."""
        found = [_weights(text, steps) for text in checkpoint] or [([model_of(model)], None)]
        files = [one for mine, _ in found for one in mine]
        return cls([*files, *map(_rollouts, rollouts)], [config for _, config in found if config is not None])

    @property
    def studies(self) -> list[str]:
        """The studies that the runs belong to."""
        return [*dict.fromkeys(str(config.get("study")) for config in self.configs)]

    @property
    def tags(self) -> list[str]:
        """Those of the runs: algorithms, tasks, models, on-policy and off-policy."""
        return [*dict.fromkeys(tag for config in self.configs for tag in run_tags(config))]


def group_of(origin: Origin, folder: Path) -> str:
    """The study that the measured runs belong to; of none, or of several, the result's own folder."""
    return origin.studies[0] if len(origin.studies) == 1 else folder.resolve().name


def _weights(text: str, steps: Collection[int | None]) -> tuple[list[Files], dict[str, Any] | None]:
    """The artifacts of one path of `checkpoint=`, and the config of its run."""
    path = Path(text)
    run = path if (path / "run.json").is_file() else path.absolute().parent.parent
    try:
        config, run_id = read_yaml(run / "config.yaml"), str(read_json(run / "run.json")["wandb_run_id"])
    except (UserError, KeyError):
        return [model_of(text)], None
    if run != path:
        return [checkpoint_of(run_id, path)], config
    start = [start_of(run_id, config.get("model") or {})] if 0 in steps else []
    saved = [one for one in checkpoints_of(run_id, run) if checkpoint_step(Path(one.aliases[0])) in steps]
    return [*start, *saved], config


def _rollouts(file: Path) -> Files:
    """Rollouts from elsewhere, by the digest of their file, as far as it is still there."""
    name = re.sub(r"[^\w.-]+", "-", file.stem)[:100] or "file"
    known = digest(file) if file.is_file() else "gone"
    return Files(f"rollouts-{name}", "rollouts", texts={"digest.txt": f"{known}  {file.name}\n"})


def command_of(folder: Path) -> dict[str, Any]:
    """The config of the command that made a result; empty where it left none."""
    return read_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
