"""Where runs are read from: run folders, W&B's offline files, the W&B service. Each gives the same of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opo.errors import UserError
from opo.run.folder import CERTIFICATE, steps_done
from opo.run.metrics import METRICS, read_rows
from opo.system.records import read_json, read_yaml
from opo.tracking.offline_file import TrackedRun, read_run
from opo.tracking.service import PREFIX, read_service


@dataclass(frozen=True)
class OneRun:
    """A run as it stands; `rows` have one for each step, in order."""

    name: str
    path: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    done: bool
    certificate: Mapping[str, Any] | None
    wandb_id: str | None


def runs_at(place: Path | str) -> Iterator[OneRun]:
    """Every run of one place, in the order of their names: a run folder or a folder above some, else W&B's offline files at or below it,
    or `wandb:ENTITY/PROJECT[/STUDY]`. Raises UserError where there is none.
    """
    if str(place).startswith(PREFIX):
        yield from (_of_wandb(run, f"{PREFIX}{run.project}/{run.id}") for run in read_service(str(place)))
        return
    path = Path(place)
    folders = sorted(run_folders(path))
    files = [path] if path.suffix == ".wandb" and path.is_file() else sorted(path.rglob("run-*.wandb"))
    if folders:
        yield from (_of_folder(folder, path) for folder in folders)
    elif files:
        tracked = [(read_run(file), file) for file in files]
        yield from (_of_wandb(run, str(file)) for run, file in tracked if run.job_type == "train")
    else:
        raise UserError(
            f"{path}: no run is here (a folder with config.yaml and run.json), nor an offline file of W&B (run-ID.wandb)"
        )


def run_folders(path: Path) -> Iterator[Path]:
    """`path` itself if it is a run folder, else those below it; nothing below a run folder is searched."""
    if (path / "config.yaml").is_file() and (path / "run.json").is_file():
        yield path
    elif path.is_dir():
        for child in path.iterdir():
            if child.is_dir() and not child.name.startswith("."):
                yield from run_folders(child)


def _of_folder(folder: Path, above: Path) -> OneRun:
    """Raises UserError where metrics.jsonl holds a line that is no row, or fewer steps than DONE says."""
    rows = list(read_rows(folder / "metrics.jsonl"))
    done = steps_done(folder)
    if done is not None and len(rows) < done:
        raise UserError(
            f"{folder / 'metrics.jsonl'}: holds {len(rows)} of the {done} steps that DONE says; restore it from a copy"
        )
    return OneRun(
        str(folder.relative_to(above)) if folder != above else above.resolve().name,
        str(folder),
        read_yaml(folder / "config.yaml"),
        rows,
        done is not None,
        read_json(folder / CERTIFICATE) if (folder / CERTIFICATE).exists() else None,
        read_json(folder / "run.json").get("wandb_run_id"),
    )


def _of_wandb(run: TrackedRun, path: str) -> OneRun:
    """Of W&B's rows those that are steps, each once: what was uploaded twice is there twice."""
    by_step = {
        row["train/step"]: {k: v for k, v in row.items() if k in METRICS} for row in run.rows if "train/step" in row
    }
    rows = [by_step[step] for step in sorted(by_step)]
    done = run.exit_code == 0 and len(rows) >= (run.config.get("steps") or 0)
    return OneRun(run.name, path, run.config, rows, done, run.summary.get("certificate"), run.id)
