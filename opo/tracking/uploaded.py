"""What `wandb sync` has uploaded of a folder's offline records, so that a record made anew holds the rest alone.

W&B appends what it is sent to the rows of a run that it knows: whatever stands in two records is there twice once both are uploaded.
"""

import json
from pathlib import Path

from opo.system.atomic import write_text
from opo.tracking.offline_file import read_run

FILE = "uploaded.json"  # below wandb/: W&B id -> steps


def uploaded_steps(folder: Path, run_id: str) -> int:
    """The last step of a training that was uploaded under this id; 0: none. It is remembered when records are replaced."""
    file = folder / "wandb" / FILE
    known: dict[str, int] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    steps = [int(row["train/step"]) for record in uploaded_records(folder, run_id) for row in read_run(record).rows]
    last = max([known.get(run_id, 0), *steps])
    if last > known.get(run_id, 0):
        write_text(file, json.dumps(known | {run_id: last}) + "\n")
    return last


def uploaded_records(folder: Path, run_id: str) -> list[Path]:
    """Offline records of this id which `wandb sync` has marked."""
    files = (folder / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")
    return [file for file in files if file.with_name(f"{file.name}.synced").exists()]
