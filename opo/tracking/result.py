"""The W&B record of a result: one run with tables, pictures, charts, numbers and files, and the artifacts it was measured on.

Whoever has the result describes it (`Result`) in plain data and plain paths; `ResultTracker` has a process of its own write the
record below the result's folder. What W&B makes of it cannot stop or change the command that made the result.
"""

import hashlib
import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from opo.errors import StoppedRun
from opo.system.atomic import write_text
from opo.system.records import read_json
from opo.system.terminal import say
from opo.tracking import CLEAN, FAILED, start_process
from opo.tracking.lineage import Files
from opo.tracking.sidecar import Sidecar
from opo.tracking.uploaded import uploaded_records

if TYPE_CHECKING:
    from opo.config.schema import WandbConfig

DESCRIPTION, KNOWN = (
    "description.json",
    "record.json",
)  # below wandb/: what the recorder shall write, and which run was written
WAIT_S = 60.0  # how long a command waits for its record


@dataclass(frozen=True)
class Table:
    """Rows under named columns; a cell is text, a number, a truth value or null."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Chart:
    """A chart that W&B draws itself from two columns of a table, and `stroke`, which names the lines of a line chart."""

    kind: Literal["bar", "line", "scatter"]
    table: Table
    x: str
    y: str
    title: str
    stroke: str | None = None


@dataclass(frozen=True)
class Result:
    """What one W&B run holds. The last of `rows` is its summary, which a leaderboard ranks by; `best` says where less is better."""

    job_type: str
    group: str
    name: str
    notes: str
    tags: Sequence[str]
    config: Mapping[str, Any]
    axis: str | None = None  # the metric that the others are drawn over
    rows: Sequence[Mapping[str, float]] = ()  # one log call each
    best: Mapping[str, Literal["min", "max"]] = field(default_factory=dict)  # of these metrics, kept beside the last
    tables: Mapping[str, Table] = field(default_factory=dict)
    charts: Mapping[str, Chart] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)  # name -> file
    made: Sequence[Files] = ()
    measured_on: Sequence[Files] = ()


class ResultTracker:
    """A context manager: its process loads wandb meanwhile, and `record` hands it the result."""

    def __init__(self, folder: Path, tracking: "WandbConfig", run_id: str | None = None) -> None:
        self.folder, self.tracking, self._id = folder, tracking, run_id
        self._process: Sidecar | None = None

    def __enter__(self) -> Self:
        if self.tracking.mode != "off":
            try:
                (self.folder / "wandb").mkdir(parents=True, exist_ok=True)
                self._process = start_process("opo.tracking.recorder", {"folder": str(self.folder.resolve())})
            except OSError as error:  # no place, no memory or no process number left
                self.say_failed(error)
        return self

    @property
    def works(self) -> bool:
        """Whether a record can be written: tracking is not off, and its process was started."""
        return self._process is not None

    def record(self, result: Result) -> str | None:
        """Write the record and return the run's id; None, and one sentence, where W&B failed or tracking is off."""
        if not self.works:
            return None
        try:
            return self.write(result)
        except (StoppedRun, OSError) as error:
            self.say_failed(error)
            return None

    def write(self, result: Result) -> str:
        """The same, but raises StoppedRun where W&B fails. What was uploaded and has not changed since is not recorded again."""
        process, known = self._process, wandb_record(self.folder)
        if process is None:
            raise StoppedRun("no process could be started")
        content = json.dumps(asdict(result), sort_keys=True)
        run_id = self._id or known["id"]
        digest = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        if self.tracking.mode == "offline" and uploaded_records(self.folder, run_id):
            if known["digest"] == digest:
                return run_id
            run_id = self._id or secrets.token_hex(4)  # W&B would add the new rows to the old ones
        write_text(self.folder / "wandb" / DESCRIPTION, json.dumps(json.loads(content) | self._setup(result, run_id)))
        self._process = None
        if not process.finish(CLEAN, WAIT_S):
            raise StoppedRun(process.kill())
        (self.folder / "wandb" / DESCRIPTION).unlink(missing_ok=True)
        write_text(self.folder / "wandb" / KNOWN, json.dumps({"id": run_id, "digest": digest}) + "\n")
        return run_id

    def __exit__(self, *_: object) -> None:
        if self._process is not None and not self._process.finish(FAILED, 1.0):
            self._process.kill()

    def _setup(self, result: Result, run_id: str) -> dict[str, Any]:
        own = self.tracking
        return {
            "id": run_id,
            "mode": own.mode,
            "project": own.project,
            "entity": own.entity,
            "notes": own.notes or result.notes,
            "tags": [*dict.fromkeys([*result.tags, *own.tags])],
            "again": True,
        }

    def say_failed(self, error: Exception) -> None:
        """One sentence: why there is no record, and that nothing else is lost."""
        known = isinstance(error, OSError) and error.filename
        reason = f"{error.strerror}: {error.filename}" if known else str(error)  # pyright: ignore[reportAttributeAccessIssue]
        say(f"W&B failed ({reason}); the result in {self.folder} stands", sys.stderr)


def wandb_id(folder: Path) -> str:
    """The W&B run of a result's folder."""
    return wandb_record(folder)["id"]


def wandb_record(folder: Path) -> dict[str, str]:
    """The W&B run of a result's folder, its id drawn once, and the digest of what it holds (empty: not recorded yet)."""
    file = folder / "wandb" / KNOWN
    if not file.is_file():
        write_text(file, json.dumps({"id": secrets.token_hex(4), "digest": ""}) + "\n")
    return read_json(file)
