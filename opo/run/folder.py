"""Run folders: config, provenance, metrics and checkpoints of a run, and how the same command resumes it.

config.yaml     resolved; the folder belongs to it     metrics.jsonl   one object per step; metrics.crc32: checksums
run.json        versions, code, device, seeds          rollouts/       completions by step
checkpoints/    step-000100/ ...                       DONE            the number of steps, once all are done
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from filelock import FileLock

from opo.errors import UserError
from opo.run.checkpoint import checkpoint_step, checkpoints, refuse_incomplete, refuse_misplaced, remove_incomplete
from opo.run.hold import hold
from opo.run.inputs import digests_of, refuse_changed_inputs
from opo.run.metrics import SUMS, cut_rows, read_rows, seal_rows
from opo.run.provenance import provenance
from opo.system.atomic import replacing, write_text
from opo.system.records import read_json, read_yaml, refuse_no_file

CERTIFICATE = "certificate.json"  # the rollout-trainer mismatch check
MOST_DIGITS = 12  # of a number of steps
FAILED = "FAILED"  # a file that holds why the last job in this folder ended
WRITTEN = ("config.yaml", "run.json", "DONE", FAILED)  # by opening a folder
# keys that may differ when a run is resumed
FREE = ("tracking", "checkpoint", "study", "threads", "device", "parallel", "reward.workers")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, locked by this process."""

    path: Path
    config: dict[str, Any]
    wandb_id: str
    _lock: FileLock | None  # let go at the latest when the process ends, however it ends
    _before: dict[str, bytes] | None = (
        None  # the files that opening writes over, as they were; None: no run was in the folder
    )
    _made: bool = False  # by this process

    @classmethod
    def open(cls, path: Path, config: dict[str, Any]) -> Self:
        """Make the folder, or open the one that this config made before.

        `steps` may grow where the learning rate does not depend on it; `tracking`, `checkpoint` and `study` may differ.
        Raises UserError that names the first other key that differs, with both values, and where another process holds
        the folder.
        """
        config = yaml.safe_load(yaml.safe_dump(config, sort_keys=False))
        file, made = path / "config.yaml", not path.exists()
        inputs = digests_of(config)
        _refuse_no_files(path)
        before: dict[str, bytes] | None = None
        if not file.exists():
            if strays := [name for name in ("metrics.jsonl", "checkpoints", "DONE") if (path / name).exists()]:
                raise UserError(
                    f"{path}: has {strays[0]} but no config.yaml, so it cannot be told which run made it; give another folder"
                )
            path.mkdir(parents=True, exist_ok=True)
            lock = hold(path)
            record = {"wandb_run_id": _wandb_run_id(), "inputs": inputs} | provenance(config)
        else:
            _refuse_another(path, read_yaml(file), config)
            record = read_json(path / "run.json")
            if not isinstance(record.get("wandb_run_id"), str):
                raise UserError(f"{path / 'run.json'}: damaged, it holds no wandb_run_id; restore it from a copy")
            if not isinstance(record.setdefault("resumed", []), list):
                raise UserError(
                    f"{path / 'run.json'}: damaged, what it holds as `resumed` is no list; restore it from a copy"
                )
            refuse_changed_inputs(record.get("inputs"), inputs, path)
            if is_done(path, config):
                _refuse_wrong_end(path)
                return cls(path, config, record["wandb_run_id"], None, {})
            lock = hold(path)
            before = {name: (path / name).read_bytes() for name in WRITTEN if (path / name).exists()}
            refuse_lost_checkpoints(path, config["checkpoint"]["every"])
            (path / "DONE").unlink(missing_ok=True)  # of fewer steps
            (path / FAILED).unlink(missing_ok=True)
            record["resumed"].append(provenance(config))
        write_text(path / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        write_text(file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        return cls(path, config, record["wandb_run_id"], lock, before, made)

    @classmethod
    @contextmanager
    def existing(cls, path: Path) -> Iterator[Self]:
        """A folder that a run left, held against a training in it and not changed.

        Raises UserError that names a damaged file, and where another process trains in it.
        """
        _refuse_no_files(path)
        config, record = read_yaml(path / "config.yaml"), read_json(path / "run.json")
        if not isinstance(record.get("wandb_run_id"), str):
            raise UserError(f"{path / 'run.json'}: damaged, it holds no wandb_run_id; restore it from a copy")
        with hold(path) as lock:
            yield cls(path, config, record["wandb_run_id"], lock, {})

    @contextmanager
    def held(self) -> Iterator[None]:
        """Unlock the folder on leaving.

        Where a UserError comes before this process's first step, the folder is as it was: what was written is taken away, so that the
        mended command finds no folder of another config, or put back.
        """
        metrics = self.path / "metrics.jsonl"
        known = metrics.read_bytes() if metrics.exists() else b""
        try:
            yield
        except UserError:
            if known.startswith(metrics.read_bytes() if metrics.exists() else b""):
                self._put_back()
            raise
        finally:
            if self._lock:
                self._lock.release()

    def _put_back(self) -> None:
        """Undo what `open` wrote."""
        for name in WRITTEN:
            if self._before is None or name not in self._before:
                (self.path / name).unlink(missing_ok=True)
            else:
                with replacing(self.path / name) as partial:
                    partial.write_bytes(self._before[name])
        if self._before is None:
            for name in ("metrics.jsonl", SUMS, ".lock"):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / "wandb", ignore_errors=True)
            if self._made and not any(self.path.iterdir()):
                self.path.rmdir()

    @property
    def done(self) -> bool:
        """Whether all steps of the config are done, or all of its tokens."""
        return is_done(self.path, self.config)

    def seal(self) -> None:
        """Keep the checksums of all rows of metrics.jsonl, which is what a checkpoint goes on from."""
        seal_rows(self.path / "metrics.jsonl")

    def finish(self, step: int) -> None:
        """Mark the run as done after so many steps; the last thing it does."""
        write_text(self.path / "DONE", f"{step}\n")

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint. What a killed save left is removed."""
        remove_incomplete(self.path / "checkpoints")
        complete = checkpoints(self.path / "checkpoints")
        for path in complete[-1:]:
            refuse_misplaced(path, self.wandb_id)
        return complete[-1] if complete else None

    def truncate_metrics(self, step: int) -> None:
        """Cut metrics.jsonl and rollouts/ back to `step`, the checkpoint's, and mend a last line that a kill cut short.

        Raises UserError where metrics.jsonl does not hold every step up to there.
        """
        file = self.path / "metrics.jsonl"
        steps = [row["train/step"] for row in read_rows(file)]
        if [number for number in steps if number <= step] != list(range(1, step + 1)):
            raise UserError(
                f"{file}: does not hold each step from 1 to {step} once, as the checkpoint of step {step} needs"
            )
        if file.exists():
            seal_rows(file, step)  # first, so that no checksum is left of a row that goes
            cut_rows(file, step)
        for table in (self.path / "rollouts").glob("*.parquet"):
            number = table.stem.removeprefix("step-")
            if table.name.startswith(".") or (number.isdecimal() and int(number) > step):
                refuse_no_file(table)
                table.unlink()


def _refuse_another(path: Path, before: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise UserError where `config` does not belong to the folder that `before` made."""
    old, new = leaves(before), leaves(config)
    for key in [*new, *(key for key in old if key not in new)]:
        if (
            key in FREE
            or key.partition(".")[0] in FREE
            or key == "steps"
            or (key in old and key in new and old[key] == new[key])
        ):
            continue
        shown = [repr(values[key]) if key in values else "absent" for values in (old, new)]
        raise UserError(
            f"{key}: {path} was made with {shown[0]} and this run has {shown[1]}; give another folder, or that value"
        )
    if new["steps"] < old["steps"]:
        raise UserError(
            f"steps: {path} was made with {old['steps']} and this run has {new['steps']}; steps may only grow"
        )
    schedule = new.get("optim.schedule", "constant")
    if new["steps"] > old["steps"] and schedule != "constant":
        raise UserError(
            f"steps: {path} was made with {old['steps']} and this run has {new['steps']}; steps may grow only where "
            f"optim.schedule=constant, and here it is {schedule}"
        )


def leaves(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested config by dotted key, in the config's order."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_done(path: Path, config: dict[str, Any]) -> bool:
    """Whether the run took the config's steps, or ended before them at its number of tokens."""
    done = steps_done(path)
    if done is None or done == config["steps"]:
        return done is not None
    return config.get("tokens") is not None and done < read_yaml(path / "config.yaml")["steps"]


def steps_done(path: Path) -> int | None:
    """What DONE says. Raises UserError where it says no number."""
    done = path / "DONE"
    refuse_no_file(done)
    if not done.exists():
        return None
    text = done.read_text(errors="replace").strip()
    if not text.isdecimal() or len(text) > MOST_DIGITS:
        raise UserError(f"{done}: damaged, it holds no number of steps; remove it to go on from the last checkpoint")
    return int(text)


def _refuse_wrong_end(path: Path) -> None:
    """Raise UserError where DONE says another step than the last row of metrics."""
    done, last = steps_done(path), max((row["train/step"] for row in read_rows(path / "metrics.jsonl")), default=0)
    if last and done != last:
        raise UserError(
            f"{path / 'DONE'}: damaged, it says {done} steps and metrics.jsonl ends at {last}; remove it to go on from the last checkpoint"
        )


def refuse_lost_checkpoints(path: Path, every: int) -> None:
    """Raise UserError where metrics.jsonl is ahead of the checkpoints by more than a kill can explain: going on would cut it back.

    A kill comes at the latest between the row of a step and its checkpoint.
    """
    refuse_incomplete(path / "checkpoints")
    last = max((row["train/step"] for row in read_rows(path / "metrics.jsonl")), default=0)
    done = steps_done(path)
    expected = done if done is not None else (last - 1) // every * every if every and last else 0
    found = checkpoints(path / "checkpoints")
    newest = checkpoint_step(found[-1]) if found else 0
    if newest < expected:
        raise UserError(
            f"{path / 'checkpoints'}: the checkpoint of step {expected} is missing (newest: {newest or 'none'}), and going on would "
            f"erase the metrics after it; restore it, or move {path} away to start again"
        )


def _wandb_run_id() -> str:
    """A new one, or in a search that W&B leads the one that its agent gives."""
    searched = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return searched or secrets.token_hex(4)


def note_failure(path: Path, reason: str) -> None:
    """Leave the reason why a job of several ended, in one line, for `opo runs`; the next start removes it."""
    if (path / "config.yaml").exists():
        write_text(path / FAILED, reason + "\n")


def _refuse_no_files(path: Path) -> None:
    """Raise UserError where a file of the run is a folder or a link to nothing, or a folder of it is none."""
    for name in (*WRITTEN, "metrics.jsonl", SUMS, CERTIFICATE, ".lock"):
        refuse_no_file(path / name)
    for name in ("checkpoints", "rollouts"):
        if os.path.lexists(path / name) and not (path / name).is_dir():
            raise UserError(f"{path / name}: damaged, it is no folder; restore it from a copy")
