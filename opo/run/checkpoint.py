"""Checkpoints: folders `step-000100/` that are complete or absent, without pickle.

Each holds `policy/` (a folder that transformers loads), `trainer.safetensors`, `trainer.json` and `manifest.json`,
which lists the SHA-256 of every other file. All is written to a hidden sibling, forced to the disk and renamed, so that
after a kill or a power cut the previous checkpoint is still complete.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opo.errors import UserError
from opo.system.atomic import replacing
from opo.system.manifest import FILE, manifest_of, refuse_damaged, write_manifest
from opo.system.records import read_json

if TYPE_CHECKING:
    from torch import Tensor  # imported where tensors are written and read: what only lists checkpoints does without


def save_checkpoint(
    folder: Path,
    step: int,
    policy_saver: Callable[[Path], object],
    tensors: "dict[str, Tensor]",
    state: dict[str, Any],
    keep: int = 0,
    *,
    run: str | None = None,
) -> Path:
    """Write the checkpoint of `step` of a run (its W&B id) below `folder`, then drop all but the newest `keep` (0: none is dropped).

    `policy_saver` fills the folder it is given; `tensors` may live on any device, `state` is JSON without NaN. Raises
    FileExistsError where this step has a checkpoint, ValueError where `state` holds a number that is not finite.
    """
    from safetensors.torch import save_file

    target = folder / f"step-{step:06d}"
    if target.exists():
        raise FileExistsError(f"{target} exists; a checkpoint is never written over")
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(target) as partial:
        policy = partial / "policy"
        policy.mkdir(parents=True)
        policy_saver(policy)
        save_file(on_cpu, partial / "trainer.safetensors")
        (partial / "trainer.json").write_text(json.dumps(state, indent=2, allow_nan=False) + "\n")
        write_manifest(partial, step=step, run=run)
    for old in checkpoints(folder)[:-keep] if keep > 0 else []:
        _drop(old)
    return target


def load_checkpoint(path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """The tensors (on the CPU) and the state of a checkpoint, every file of it checked against the manifest.

    Raises UserError that names the first file that is missing or whose bytes are not those that were written.
    """
    from safetensors import SafetensorError, safe_open

    if manifest_of(path) is None:
        raise UserError(f"{path}: no checkpoint is here (manifest.json is missing)")
    refuse_damaged(path, advice=f"; remove {path} to go on from the checkpoint before it")
    try:
        state = json.loads((path / "trainer.json").read_text(encoding="utf-8"))
        with safe_open(path / "trainer.safetensors", framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a dict: it has no iterator
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it to go on from the checkpoint before it") from error
    return tensors, state


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints below `folder`, oldest first."""
    complete = [
        path for path in folder.glob("step-*") if path.name[5:].isdecimal() and (path / "manifest.json").is_file()
    ]
    return sorted(complete, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The step a checkpoint's folder is named after."""
    return int(path.name.removeprefix("step-"))


def refuse_incomplete(folder: Path) -> None:
    """Raise UserError for what is called like a checkpoint below `folder` and is none; what a killed save left is hidden."""
    for path in sorted(folder.glob("step-*")):
        if not path.name.removeprefix("step-").isdecimal():
            raise UserError(f"{path}: is named like a checkpoint, step-NNNNNN, and has no number; rename it")
        if not (path / FILE).is_file():
            raise UserError(f"{path}: has no {FILE}, so it is not known to be whole; restore it, or remove the folder")


def refuse_misplaced(path: Path, run: str | None) -> None:
    """Raise UserError where the manifest is of another step than the folder's name says, or of another run than `run`."""
    facts = read_json(path / FILE)
    for what, own, said in (("step", checkpoint_step(path), facts.get("step")), ("run", run, facts.get("run"))):
        if own is not None and said is not None and said != own:
            raise UserError(
                f"{path}: is the checkpoint of {what} {said} and not of {what} {own}; put the right one there"
            )


def remove_incomplete(folder: Path) -> None:
    """Remove what killed saves, interrupted removals and half-copied checkpoints left below `folder`."""
    for path in [*folder.glob(".step-*"), *folder.glob("step-*")]:
        if path.name.startswith(".") or not (path / "manifest.json").is_file():
            shutil.rmtree(path)


def _drop(path: Path) -> None:
    """Remove a checkpoint; renamed first, so that a kill in the middle leaves nothing that looks complete."""
    shutil.rmtree(path.rename(path.with_name(f".{path.name}.dropped")))
