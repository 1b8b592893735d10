"""Several studies side by side: every policy that one of them looked at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from analysis.study.result import SCHEMA, Study
from opo.errors import UserError
from opo.system.records import read_json


@dataclass(frozen=True)
class Looked:
    """One policy of one study."""

    label: str  # the study's name, and the policy's where the study has several
    study: Study
    policy: dict[str, Any]


def study_folders(folder: Path) -> dict[str, Path]:
    """The folders at or below this one that hold a finished study, by their path from here."""
    found = sorted(path.parent for path in folder.rglob("result.json"))
    return {
        str(path.relative_to(folder)): path for path in found if read_json(path / "result.json").get("schema") == SCHEMA
    }


def looked_at(studies: Mapping[str, Study]) -> list[Looked]:
    """Every policy with a gradient, in the order of the studies. Raises UserError where their references differ."""
    found = list(_looked_at(studies))
    if len(references := {each.study.settings["reference"] for each in found}) > 1:
        raise UserError(
            f"studies with different references ({', '.join(sorted(references))}) cannot stand side by side; report on each"
        )
    return found


def _looked_at(studies: Mapping[str, Study]) -> Iterator[Looked]:
    for name, study in studies.items():
        for policy in study.policies:
            if not study.all_rewards_equal(policy["name"]):
                label = name if len(study.policies) == 1 else f"{name}, {policy['label']}"
                yield Looked(label, study, policy)


def shared_estimators(looked: Sequence[Looked]) -> list[str]:
    """Estimators that every study compares with the reference, in the order of the first."""
    return [
        name
        for name in looked[0].study.estimators
        if name != looked[0].study.settings["reference"] and all(name in each.study.estimators for each in looked)
    ]


def ratio(looked: Looked, estimator: str) -> dict[str, Any]:
    """Its relative variance over the reference's, at the study's default group size."""
    return looked.study.ratio(estimator, looked.policy["name"])


def length_spread(looked: Looked) -> float:
    """Squared coefficient of variation of the response length, Var(L) / E[L]^2 within a prompt, mean over prompts."""
    lengths = looked.study.responses.filter(policy=looked.policy["name"]).group_by("prompt_id")
    spread = pl.col("length").var() / pl.col("length").mean() ** 2
    return float(lengths.agg(spread.alias("spread"))["spread"].to_numpy().mean())
