"""What a variance study leaves behind, and how to read it back.

A folder with `result.json` (settings, policies and all estimates; its own SHA-256, and that of the material), `variance.parquet` (its table `moments`, the same rows), and
the material behind them: `prompts.parquet`, `audit_terms.parquet`, `responses.parquet`. Estimates are tidy, one and its 95 % interval
in a row, with these columns in common:

    value, low, high    float or null. Null is a bound or a value that the data does not give: an interval that has no upper end,
                        a ratio whose denominator is not above zero. Never NaN, never infinity.
    resolved            bool: the value is known and its interval is bounded

    moments             policy, step, estimator, group_size, measure, ...       measures: analysis.study.run.MEASURES
    comparisons         policy, step, estimator, reference, group_size, measure, p_value, p_holm, ...
                        value: the estimator's relative variance over the reference's, paired over the same rollouts
    equal_variance      policy, step, estimator, reference, group_size, ...     value: the reference's group size of equal variance
    audits              policy, step, scope, measure, ...                       scope: "all", or one part of the model

One row a prompt or a response, without intervals:

    prompts             policy, prompt_id, estimator, group_size and that prompt's unbiased moments (analysis.variance.moments.Moments)
    audit_terms         policy, prompt_id, scope, measure, a, b, c (analysis.study.audits.audit_terms)
    responses           policy, prompt_id, response, reward, length, norm2, logit_energy, head_norm2
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars as pl

from analysis.variance.intervals import FEWEST, Array, resample_counts
from analysis.variance.moments import Moments
from opo.errors import UserError
from opo.system.atomic import replacing, write_text
from opo.system.manifest import refuse_changed, sha256
from opo.system.records import read_json, read_sealed, read_table, sealed
from opo.system.seeding import rng_for

SCHEMA = "opo.variance/1"

_ESTIMATE = {"value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "resolved": pl.Boolean}
_WHERE = {"policy": pl.String, "step": pl.Int64}
TABLES: dict[str, dict[str, Any]] = {
    "moments": _WHERE | {"estimator": pl.String, "group_size": pl.Int64, "measure": pl.String} | _ESTIMATE,
    "comparisons": _WHERE
    | {"estimator": pl.String, "reference": pl.String, "group_size": pl.Int64, "measure": pl.String}
    | _ESTIMATE
    | {"p_value": pl.Float64, "p_holm": pl.Float64},
    "equal_variance": _WHERE | {"estimator": pl.String, "reference": pl.String, "group_size": pl.Int64} | _ESTIMATE,
    "audits": _WHERE | {"scope": pl.String, "measure": pl.String} | _ESTIMATE,
}
MATERIAL: dict[str, dict[str, Any]] = {
    "prompts": {"policy": pl.String, "prompt_id": pl.String, "estimator": pl.String, "group_size": pl.Int64}
    | dict.fromkeys(("second", "signal", "reference", "cross", "error"), pl.Float64),
    "audit_terms": {"policy": pl.String, "prompt_id": pl.String, "scope": pl.String, "measure": pl.String}
    | dict.fromkeys(("a", "b", "c"), pl.Float64),
    "responses": {
        "policy": pl.String,
        "prompt_id": pl.String,
        "response": pl.Int64,
        "reward": pl.Float64,
        "length": pl.Int64,
    }
    | dict.fromkeys(("norm2", "logit_energy", "head_norm2"), pl.Float64),
}


def estimate(value: float, low: float, high: float) -> dict[str, Any]:
    """The columns of one estimate; what is not finite becomes null and unresolved."""
    known = [number if math.isfinite(number) else None for number in (float(value), float(low), float(high))]
    return dict(zip(("value", "low", "high"), known, strict=True)) | {"resolved": None not in known}


def prompt_resamples(seed: int, num_bootstrap: int, num_prompts: int) -> Array:
    """The one matrix of resamples of a study, (B, P): every interval over its prompts, of whatever, comes from these.

    So a number that is printed in two places has one interval, and all comparisons are paired.
    """
    return resample_counts(num_prompts, num_bootstrap, rng_for(seed, "prompts"))


def default_group_size(sizes: Iterable[int]) -> int:
    """8 where it was studied, else the middle one."""
    known = sorted(sizes)
    return 8 if 8 in known else known[len(known) // 2]


@dataclass(frozen=True)
class Study:
    """A finished study: settings, the policies that were looked at, and the tables."""

    settings: dict[str, Any]
    policies: list[dict[str, Any]]  # name, label, step (or null), path, prompts, responses, reward_mean, length_mean
    versions: dict[str, str]
    moments: pl.DataFrame
    comparisons: pl.DataFrame
    equal_variance: pl.DataFrame
    audits: pl.DataFrame
    prompts: pl.DataFrame
    audit_terms: pl.DataFrame
    responses: pl.DataFrame
    imported: dict[str, Any] | None = None  # rollouts from elsewhere: what was read, left out, added and assumed
    provenance: Sequence[dict[str, Any]] = ()  # of each process that measured: `analysis.study.provenance`

    @classmethod
    def of(cls, rows: Mapping[str, Iterable[Mapping[str, Any]]], **others: Any) -> "Study":
        """From lists of rows, checked against the columns above."""
        schemas = {name: schema for name, schema in (TABLES | MATERIAL).items() if name not in others}
        return cls(
            **{name: pl.DataFrame(list(rows[name]), schema=schema) for name, schema in schemas.items()}, **others
        )

    @property
    def estimators(self) -> list[str]:
        return list(self.settings["estimators"])

    @property
    def last_policy(self) -> str:
        return self.policies[-1]["name"]

    @property
    def default_group_size(self) -> int:
        return default_group_size(self.settings["group_sizes"])

    def named(self, policy: str | None = None) -> str:
        """The name of the policy that is called so, or labelled so (`start`, `step 30`); of the last one where none is given."""
        labels = [p["label"] for p in self.policies]
        called = {p["label"]: p["name"] for p in self.policies if labels.count(p["label"]) == 1}
        called |= {p["name"]: p["name"] for p in self.policies}
        if policy is not None and policy not in called:
            known = ", ".join(f"{p['name']} ({p['label']})" for p in self.policies)
            raise UserError(f"policy {policy!r}: the study has {known}")
        return self.last_policy if policy is None else called[policy]

    def policy(self, name: str | None = None) -> dict[str, Any]:
        """What is known of one policy (the last), by its name or label."""
        name = self.named(name)
        return next(policy for policy in self.policies if policy["name"] == name)

    def resamples(self, num_prompts: int) -> Array:
        """See `prompt_resamples`."""
        return prompt_resamples(self.settings["seed"], self.settings["num_bootstrap"], num_prompts)

    def prompt_moments(self, estimator: str, group_size: int, policy: str | None = None) -> Moments:
        """Each prompt's moments at one policy (the last)."""
        where = {"policy": self.named(policy), "estimator": estimator, "group_size": group_size}
        rows = self._some(self.prompts.filter(**where), f"moments at {where}")
        return Moments(*(rows[field.name].to_numpy() for field in fields(Moments)))

    def all_rewards_equal(self, policy: str | None = None) -> bool:
        """Whether no prompt of the policy (the last) has two responses of different reward."""
        info = self.policy(policy)
        return info["constant_prompts"] == info["prompts"]

    def notices(self, policy: str | None = None) -> list[str]:
        """What to know before any table of this policy (the last), a sentence each; empty where there is nothing."""
        info, notices = self.policy(policy), []
        if self.all_rewards_equal(policy):
            notices.append(
                f"{info['label']}: all responses to a prompt earn the same reward, at each of the {info['prompts']} prompts: the gradient "
                "is zero as far as they show, so there is no variance to compare. Take prompts that the policy answers right now and then."
            )
        if info["prompts"] < FEWEST:
            notices.append(
                f"{info['label']}: {info['prompts']} prompts give points and no intervals; intervals need {FEWEST}."
            )
        return notices

    def select(self, measure: str, policy: str | None = None, group_size: int | None = None) -> pl.DataFrame:
        """One measure of every estimator at one policy (the last) and one group size (the default)."""
        where = {"policy": self.named(policy), "group_size": group_size or self.default_group_size}
        return self._some(self.moments.filter(measure=measure, **where), f"{measure} at {where}")

    def compare(
        self, policy: str | None = None, group_size: int | None = None, measure: str = "relative_variance"
    ) -> pl.DataFrame:
        """Every other estimator's measure over the reference's."""
        where: dict[str, Any] = {
            "policy": self.named(policy),
            "group_size": group_size or self.default_group_size,
        }
        return self._some(self.comparisons.filter(measure=measure, **where), f"a comparison at {where}")

    def ratio(self, estimator: str, policy: str | None = None, group_size: int | None = None) -> dict[str, Any]:
        """One row of `compare`: an estimator's relative variance over the reference's. Raises UserError where there is none."""
        rows = self.compare(policy, group_size)
        if (found := rows.filter(estimator=estimator)).is_empty():
            compared = ", ".join(rows["estimator"])
            raise UserError(
                f"estimator {estimator!r}: not compared with {self.settings['reference']}; there are {compared}"
            )
        return found.row(0, named=True)

    def audit(self, measure: str, policy: str | None = None, scope: str = "all") -> dict[str, Any]:
        """One number of the audits with its interval."""
        where = {"policy": self.named(policy), "scope": scope, "measure": measure}
        return self._some(self.audits.filter(**where), f"an audit at {where}").row(0, named=True)

    def _some(self, rows: pl.DataFrame, what: str) -> pl.DataFrame:
        if rows.is_empty():
            sizes, known = self.settings["group_sizes"], ", ".join(self.estimators)
            raise UserError(f"the study has no {what}; its group sizes are {sizes}, its estimators {known}")
        return rows

    def only(self, policy: str) -> "Study":
        """The same study of one policy."""
        tables = {
            f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), pl.DataFrame)
        }
        policy = self.named(policy)
        kept = {name: rows.filter(policy=policy) for name, rows in tables.items() if "policy" in rows.columns}
        return replace(self, policies=[self.policy(policy)], **kept)

    def save(self, folder: Path) -> None:
        """Write the files, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"schema": SCHEMA, "settings": self.settings, "versions": self.versions, "policies": self.policies}
        content |= {} if self.imported is None else {"import": self.imported}
        content["provenance"] = list(self.provenance)
        content |= {name: getattr(self, name).to_dicts() for name in TABLES}
        material: dict[str, pl.DataFrame] = {name: getattr(self, name) for name in MATERIAL}
        for name, table in {"variance": self.moments, **material}.items():
            with replacing(folder / f"{name}.parquet") as partial:
                table.write_parquet(partial)
        content["files"] = {name: sha256(folder / f"{name}.parquet") for name in material}
        # the result last: it says that all is there
        write_text(folder / "result.json", json.dumps(sealed(content), indent=1, allow_nan=False) + "\n")


def load(folder: Path | str) -> Study:
    """The study in a folder. Raises UserError where there is none, or one of another schema."""
    path = Path(folder) / "result.json"
    if not path.is_file():
        raise UserError(f"{folder}: no variance study here (no result.json); `opo variance` makes one")
    if (schema := read_json(path).get("schema")) != SCHEMA:
        raise UserError(f"{path}: schema {schema!r}, this version reads {SCHEMA!r}")
    content = read_sealed(path)
    for name, digest in content["files"].items():
        refuse_changed(path.with_name(f"{name}.parquet"), digest, path.name)
    material = {name: read_table(path.with_name(f"{name}.parquet")) for name in MATERIAL}
    return Study.of(
        content,
        **material,
        settings=content["settings"],
        policies=content["policies"],
        versions=content["versions"],
        imported=content.get("import"),
        provenance=content.get("provenance", []),
    )
