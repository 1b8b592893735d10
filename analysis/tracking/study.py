"""A variance study for W&B: estimators, ledger, audits and completions as tables, its figures, and its files as one artifact."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from analysis.claims.files import read_ledger
from analysis.report.answer import sentence
from analysis.report.sources import Sources
from analysis.study.result import Study
from analysis.tracking.origin import Origin, command_of, group_of
from analysis.tracking.tables import completions, files_of, images, ledger, table_of
from opo.run.policies import listed
from opo.tracking.result import Chart, Result, Table

SHOWN = ("relative_variance", "bias", "cosine", "trace_cov")  # measures of the table of estimators
FILES = ("result.json", "config.yaml", "*.parquet", "ledger/*/claims.json")
ENDS = {"": "value", "_low": "low", "_high": "high"}
MOST_POINTS = 1000  # of a scatter chart


def result_of(study: Study, folder: Path) -> Result:
    """What W&B holds of a finished study in its folder."""
    command, sources = command_of(folder), Sources.of(folder)
    origin = origin_of(study, command)
    ledgers = {p["label"]: (read_ledger(folder, p["name"]) or {}).get("claims", []) for p in study.policies}
    return Result(
        job_type="variance",
        group=group_of(origin, folder),
        name=folder.resolve().name,
        notes=sentence(sources),
        tags=[*(["external-rollouts"] if study.imported else []), *(origin.tags or sources.tasks)],
        config={"command": command, "settings": study.settings},
        axis="policy/step",
        rows=list(_rows(study)),
        best={f"{kind}/{name}": "min" for kind in ("relative_variance", "ratio") for name in study.estimators},
        tables={
            "estimators": estimators(study),
            "ledger": ledger(ledgers),
            "audits": table_of(study.audits),
            "completions": completions(folder, study.policies),
        },
        charts=_charts(study),
        images=images(folder / "figures"),
        made=[files_of(folder, "variance", FILES)],
        measured_on=origin.files,
    )


def origin_of(study: Study, command: Mapping[str, Any]) -> Origin:
    """From the command that made it, else from the weights that it names."""
    paths = [Path(path) for policy in study.policies for path in policy["paths"]]
    runs = [str(path.parents[2]) for path in paths if path.parent.parent.name == "checkpoints"]
    checkpoint = listed(command.get("checkpoint")) or [*dict.fromkeys(runs)]
    files = [Path(file) for file in study.settings["rollouts"] or ()]
    return Origin.of(checkpoint, str(paths[0]), {policy["step"] for policy in study.policies}, files)


def estimators(study: Study) -> Table:
    """One row for each policy, group size and estimator: its measures, and its relative variance over the reference's."""
    place = ["policy", "step", "group_size", "estimator"]
    found = {m: study.moments.filter(measure=m) for m in SHOWN}
    wide = found[SHOWN[0]].select(place)
    for name, rows in found.items():
        wide = wide.join(
            rows.select(*place, **_ends(name)), on=place, how="left", nulls_equal=True, maintain_order="left"
        )
    ratio = study.comparisons.filter(measure="relative_variance").select(*place, "p_holm", **_ends("ratio"))
    return table_of(wide.join(ratio, on=place, how="left", nulls_equal=True, maintain_order="left"))


def _ends(name: str) -> dict[str, pl.Expr]:
    """A value and its interval under the name of their measure."""
    return {name: pl.col("value"), f"{name}_low": pl.col("low"), f"{name}_high": pl.col("high")}


def _rows(study: Study) -> Iterator[dict[str, float]]:
    """Each policy's numbers at the default group size, in the order of training; the last are what a leaderboard ranks by."""
    for policy in study.policies:
        name, size = policy["name"], study.default_group_size
        row = {"policy/reward_mean": policy["reward_mean"], "policy/length_tokens_mean": policy["length_mean"]}
        row |= {} if policy["step"] is None else {"policy/step": policy["step"]}
        compared = study.comparisons.filter(policy=name, group_size=size, measure="relative_variance")
        for kind, rows in (
            *((kind, study.select(kind, name)) for kind in ("relative_variance", "bias")),
            ("ratio", compared),
        ):
            for found in rows.iter_rows(named=True):
                row |= {f"{kind}{end}/{found['estimator']}": found[key] for end, key in ENDS.items()}
        yield {name: value for name, value in row.items() if value is not None}


def _charts(study: Study) -> dict[str, Chart]:
    """What W&B draws itself, without intervals; the figures have them."""
    name, size, reference = study.last_policy, study.default_group_size, study.settings["reference"]
    label = study.policy(name)["label"]
    sizes = study.moments.filter(policy=name, measure="relative_variance").select("estimator", "group_size", "value")
    responses = study.responses.filter(policy=name).select("length", "norm2", "reward")
    every = max(1, -(-len(responses) // MOST_POINTS))
    charts = {
        "charts/against_group_size": Chart(
            "line",
            table_of(sizes),
            "group_size",
            "value",
            f"Relative variance against group size, {label}",
            "estimator",
        ),
        "charts/norm_against_length": Chart(
            "scatter",
            table_of(responses.gather_every(every)),
            "length",
            "norm2",
            f"Squared score norm against length, {label}",
        ),
    }
    if len(study.estimators) > 1:
        ratios = table_of(study.compare(name).select("estimator", "value").sort("value"))
        charts["charts/ratio"] = Chart(
            "bar", ratios, "estimator", "value", f"Relative variance over {reference}'s, {label}, G = {size}"
        )
    return charts
