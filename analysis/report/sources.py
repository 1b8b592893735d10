"""What a report is made from: the study, the runs and the ledgers that a folder holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.claims.files import read_ledger
from analysis.evaluation.result import FILE as EVALUATION
from analysis.evaluation.result import Evaluation
from analysis.evaluation.result import load as load_evaluation
from analysis.runs.load import Runs
from analysis.runs.load import load as load_runs
from analysis.study.result import Study
from analysis.study.result import load as load_study
from analysis.study.several import study_folders
from opo.errors import UserError
from opo.system.records import read_json, read_sealed


@dataclass(frozen=True)
class Sources:
    """A verify folder, a variance study, an evaluation, or any folder of runs or of studies."""

    folder: Path
    study_folder: Path | None
    study: Study | None
    runs: Runs | None
    evaluation: Evaluation | None = None
    several: "dict[str, Sources]" = field(default_factory=dict)  # studies below a folder that has nothing else

    @classmethod
    def of(cls, folder: Path) -> "Sources":
        """Raises UserError where there is nothing to report on."""
        study_folder = next((f for f in (folder, folder / "variance") if (f / "result.json").is_file()), None)
        study = load_study(study_folder) if study_folder else None
        runs = load_runs(folder) if any(folder.rglob("run.json")) else None
        evaluation = load_evaluation(folder) if (folder / EVALUATION).is_file() else None
        alone = study is None and runs is None and evaluation is None
        below = {name: cls.of(path) for name, path in study_folders(folder).items()} if alone else {}
        if alone and not below:
            raise UserError(f"{folder}: nothing to report on (no result.json, no {EVALUATION}, no run folder)")
        return cls(folder, study_folder, study, runs, evaluation, below)

    @property
    def is_verify(self) -> bool:
        """Whether there are claims about a study and about trainings together."""
        return (self.folder / "claims.json").is_file()

    @cached_property
    def ledgers(self) -> dict[str, list[dict[str, Any]]]:
        """Claims by the policy that they were judged at; the page's own come first."""
        found: dict[str, list[dict[str, Any]]] = {}
        if self.is_verify:
            name = self.study.last_policy if self.study else ""
            found[name] = read_sealed(self.folder / "claims.json")["claims"]
        if self.study is not None and self.study_folder is not None:
            for policy in reversed(self.study.policies):
                if policy["name"] not in found and (content := read_ledger(self.study_folder, policy["name"])):
                    found[policy["name"]] = content["claims"]
        return found

    @property
    def measured(self) -> list[dict[str, Any]]:
        """Provenance of every process that measured."""
        of_evaluation = self.evaluation.settings.get("provenance", []) if self.evaluation else []
        return [*(self.study.provenance if self.study else ()), *of_evaluation]

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Provenance of every process that measured, then of every run."""
        found = self.measured
        for path in self.runs.runs["path"] if self.runs is not None else ():
            found.append(read_json(Path(path) / "run.json"))
        return found

    @property
    def models(self) -> list[str]:
        """`name (size)`, as far as the size was recorded."""
        sizes = {r["model"]: r["parameters"] for r in self.measured}
        names = [*sizes, *(self.runs.runs["model"] if self.runs is not None else ())]
        return [
            f"{name} ({count_text(sizes[name])} parameters)" if name in sizes else name for name in dict.fromkeys(names)
        ]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks; rollouts from elsewhere bring their own prompts."""
        names = [task_text(r["task"]) if r["task"] else "rollouts from a file" for r in self.measured]
        return list(dict.fromkeys([*names, *(self.runs.runs["task"] if self.runs is not None else ())]))


def task_text(task: Mapping[str, Any]) -> str:
    """Its name; a dataset of reasoning-gym goes by its own."""
    return task.get("dataset") or task["name"]


def count_text(count: int) -> str:
    """`6.6M`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
