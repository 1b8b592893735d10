"""Tracking: metrics.jsonl is always written, and a separate process copies it to W&B.

The trainer writes one line per step and forces it to the disk. Beside it `python -m opo.tracking.mirror` (the only
place that knows wandb) reads the run folder and repeats it to W&B. The trainer never waits for that process: it may be
slow, hang, crash or find no wandb at all, and the run is the same, bit by bit.

Since a mirror can be made anew, nothing has to be merged. A run that goes on offline replaces its W&B record by one of
the whole metrics.jsonl, which was cut back to the checkpoint. Online, the steps that the server has are kept (a resumed
run repeats them bit by bit) and the ones it lacks are sent. A run that W&B refuses online is recorded offline, for
`wandb sync`.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from opo.run.metrics import METRICS, checked_row, read_rows
from opo.system.atomic import replacing
from opo.system.terminal import say
from opo.tracking.sidecar import Sidecar

if TYPE_CHECKING:
    from opo.config.schema import RunConfig, TrackingConfig
    from opo.run.folder import RunFolder

__all__ = ["COMPLETIONS", "METRICS", "Tracker"]

FINISH_S = 30.0  # how long the end of a run waits for W&B
AWAKE, CLEAN, FAILED = b".", b"!", b"?"  # to the mirror: a row was written, the run ended well, or not

COMPLETIONS = {  # column of rollouts/step-*.parquet -> Arrow type
    "prompt_index": "int64",  # in the task's stream
    "sample": "int64",  # number within its group
    "prompt": "string",
    "response": "string",
    "reward": "float64",  # null: unscored
    "reward_parts": "string",  # of a reward of several functions: {"name": value, ...}, unweighted
    "unscorable": "string",  # why, or null
    "tokens": "int64",
    "logprob_nats": "float64",  # of the response, summed over its tokens
    "finished": "bool",  # false: cut at rollout.max_new_tokens
    "version": "int64",  # the oldest of its tokens': number of updates before the weights that sampled them
}


class Tracker:
    """The record of one run, a context manager: `completions`, then `log`, once each in a step."""

    def __init__(
        self, folder: "RunFolder", tracking: "TrackingConfig", config: "RunConfig", finish_s: float = FINISH_S
    ) -> None:
        self.folder, self.mode, self.finish_s = folder.path, tracking.mode, finish_s
        self.setup = {
            "folder": str(folder.path.resolve()),
            "project": tracking.project,
            "entity": tracking.entity,
            "id": folder.wandb_id,
            "name": folder.path.resolve().name,
            "group": config.study,
            "tags": [*run_tags(folder.config), *tracking.tags],
            "notes": tracking.notes,
        }

    @classmethod
    def open(
        cls, folder: "RunFolder", tracking: "TrackingConfig", config: "RunConfig", finish_s: float = FINISH_S
    ) -> Self:
        """The tracker of `folder`; W&B starts when the context is entered, and has `finish_s` seconds at its end."""
        return cls(folder, tracking, config, finish_s)

    def __enter__(self) -> Self:
        file = self.folder / "metrics.jsonl"
        self.last_step = max((row["train/step"] for row in read_rows(file)), default=0)
        self._stream = file.open("a", encoding="utf-8")
        self._mirror = self._start()
        return self

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append the row of `step`; it is on the disk when this returns.

        Raises ValueError where a metric is not in METRICS or not finite, and where `step` has a row.
        """
        row = checked_row(step, metrics)
        self._new(step)
        self._stream.write(json.dumps(row, allow_nan=False) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.last_step = step
        if self._mirror is not None and not self._mirror.wake(AWAKE):
            self._lost(self._mirror)

    def completions(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Keep these responses in rollouts/step-NNNNNN.parquet; call it before `log` of the same step.

        Columns are those of COMPLETIONS; one that is left out is null. Raises ValueError for others, and where `step`
        has a row.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._new(step)
        if others := {name for row in rows for name in row} - COMPLETIONS.keys():
            raise ValueError(f"completions have the column {min(others)!r}; allowed are {', '.join(COMPLETIONS)}")
        schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COMPLETIONS.items()])
        file = completions_file(self.folder, step)
        with replacing(file) as partial:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stream.close()
        ending = CLEAN if kind is None else FAILED
        while self._mirror is not None and not self._mirror.finish(ending, self.finish_s):
            self._lost(self._mirror)

    def _new(self, step: int) -> None:
        if step <= self.last_step:
            raise ValueError(
                f"step {step} has a row in {self._stream.name}: log completions first, and every step once"
            )

    def _start(self) -> Sidecar | None:
        """The process that mirrors the folder as it is now and becomes."""
        if self.mode == "off":
            return None
        try:
            return start_mirror(self.setup | {"mode": self.mode})
        except OSError as error:  # no memory or no process number left
            say(f"W&B failed ({error}); metrics.jsonl goes on", sys.stderr)
            return None

    def _lost(self, mirror: Sidecar) -> None:
        """Say once that W&B failed and why; go on offline where it was online, else without it."""
        reason = mirror.kill()
        online, self.mode = self.mode == "online", "offline" if self.mode == "online" else "off"
        goes_on = f"it is recorded in {self.folder / 'wandb'} for `wandb sync`" if online else "metrics.jsonl goes on"
        say(f"W&B failed ({reason}); {goes_on}", sys.stderr)
        self._mirror = self._start()


def completions_file(folder: Path, step: int) -> Path:
    return folder / "rollouts" / f"step-{step:06d}.parquet"


def run_tags(config: Mapping[str, Any]) -> list[str]:
    """Algorithm, task and model of a run's config, and whether each batch is used for one update."""
    names = [str(config[key]["name"]) for key in ("algo", "task", "model") if "name" in config[key]]
    updates = config["algo"].get("updates_per_rollout", 1)
    return [*dict.fromkeys([*names, "on-policy" if updates == 1 else "off-policy"])]


def start_mirror(setup: dict[str, Any]) -> Sidecar:
    """The process `opo.tracking.mirror` at work on a run folder. Raises OSError where none can be started."""
    return start_process("opo.tracking.mirror", setup)


def start_process(module: str, setup: Mapping[str, Any]) -> Sidecar:
    """A process of this package at work on `setup["folder"]`. Raises OSError where none can be started."""
    wandb_folder = Path(setup["folder"]) / "wandb"
    wandb_folder.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # another run's
    environment["WANDB_DATA_DIR"] = str(wandb_folder / "data")  # staged artifacts: a run folder can be moved
    return Sidecar(module, json.dumps(setup), wandb_folder / "mirror.log", environment)
