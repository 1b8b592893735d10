"""What a run made or was measured on, as W&B artifacts of small files that name it: no weights are copied.

Artifacts of one name and the same files are one version in W&B, whoever logs them. So a training logs each checkpoint by its
manifest (the SHA-256 of every file), a study uses the same manifest, and W&B draws the line from the one to the other.
"""

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opo.run.checkpoint import checkpoint_step, checkpoints
from opo.system.manifest import FILE

if TYPE_CHECKING:
    import wandb


@dataclass(frozen=True)
class Files:
    """The files of one artifact: by path, or by their text."""

    name: str
    type: str
    paths: Mapping[str, str] = field(default_factory=dict)  # name in the artifact -> file
    texts: Mapping[str, str] = field(default_factory=dict)  # name in the artifact -> content
    aliases: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


def start_of(run_id: str, model: Mapping[str, Any]) -> Files:
    """The policy that a run began with: a model as it comes."""
    text = json.dumps({"wandb_run_id": run_id, "step": 0, "model": dict(model)}, indent=1, sort_keys=True)
    return Files(f"checkpoint-{run_id}", "model", texts={"start.json": text}, aliases=("step-000000",))


def checkpoint_of(run_id: str, checkpoint: Path) -> Files:
    """A checkpoint of a run, by its manifest."""
    text = (checkpoint / FILE).read_text(encoding="utf-8")
    where = {"step": checkpoint_step(checkpoint), "folder": checkpoint.name}
    return Files(f"checkpoint-{run_id}", "model", texts={FILE: text}, aliases=(checkpoint.name,), metadata=where)


def checkpoints_of(run_id: str, folder: Path, besides: Collection[str] = ()) -> Iterator[Files]:
    """The checkpoints that a run folder holds now, without those of these names."""
    for checkpoint in checkpoints(folder / "checkpoints"):
        if checkpoint.name not in besides:
            with contextlib.suppress(FileNotFoundError):  # the trainer dropped it meanwhile
                yield checkpoint_of(run_id, checkpoint)


def model_of(name: str) -> Files:
    """A model that no run of ours made: a folder, a hub id, or the built-in one."""
    short = re.sub(r"[^\w.-]+", "-", Path(name).name) or "model"
    return Files(f"model-{short}"[:120], "model", texts={"model.json": json.dumps({"model": name})})


def log_artifact(run: "wandb.Run", files: Files) -> None:
    """Log it as something that the run made."""
    run.log_artifact(_artifact(files), aliases=[*files.aliases])


def use_artifact(run: "wandb.Run", files: Files) -> None:
    """Log it as something that the run was measured on; `wandb sync` draws the line once it uploads an offline run."""
    if run.settings.mode == "online":
        run.use_artifact(_artifact(files), aliases=[*files.aliases])
    else:  # what use_artifact does online; offline it refuses, though the record of an offline run can say it
        run._log_artifact(_artifact(files), aliases=[*files.aliases], is_user_created=True, use_after_commit=True)


def _artifact(files: Files) -> "wandb.Artifact":
    import wandb

    artifact = wandb.Artifact(files.name, type=files.type, metadata=dict(files.metadata))
    for name, path in files.paths.items():
        artifact.add_file(path, name=name)
    for name, text in files.texts.items():
        with artifact.new_file(name, encoding="utf-8") as stream:
            stream.write(text)
    return artifact
