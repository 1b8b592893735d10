"""An evaluation for W&B: measures, differences and completions as tables, pass@k as a chart and a figure, its files as one artifact."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.evaluation.result import FILE, Evaluation
from analysis.evaluation.text import sentence
from analysis.tracking.origin import Origin, command_of, group_of
from analysis.tracking.tables import MOST_COMPLETIONS, files_of, images, table_of
from opo.run.policies import listed
from opo.system.records import read_table
from opo.tracking.result import Chart, Result, Table

ENDS = ("value", "low", "high", "num_prompts")


def result_of(found: Evaluation, folder: Path) -> Result:
    """What W&B holds of an evaluation in its folder."""
    command = command_of(folder)
    model = command.get("model") or {}
    steps = {policy["step"] for policy in found.policies}
    origin = Origin.of(
        listed(command.get("checkpoint")), str(model.get("path") or model.get("name") or "tiny"), steps, []
    )
    return Result(
        job_type="evaluate",
        group=group_of(origin, folder),
        name=folder.resolve().name,
        notes=sentence(found),
        tags=origin.tags or list(found.settings.get("tasks", [])),
        config={"command": command},
        axis="policy/step",
        rows=[_row(policy) for policy in found.policies],
        best={f"eval/{_metric(name)}": "max" for name in found.policies[-1]["measures"] if _is_rate(name)},
        tables={
            "evaluation": Table(
                ["policy", "step", "measure", *ENDS],
                [
                    [p["policy"], p["step"], name, *(e[end] for end in ENDS)]
                    for p in found.policies
                    for name, e in p["measures"].items()
                ],
            ),
            "differences": Table(
                list(found.differences[0]) if found.differences else ["policy", "reference"],
                [list(difference.values()) for difference in found.differences],
            ),
            "completions": _completions(folder / "responses.parquet", len(found.policies)),
        },
        charts={"charts/pass_at_k": _against_k(found)},
        images=images(folder / "figures"),
        made=[files_of(folder, "evaluation", (FILE, "config.yaml", "*.parquet"))],
        measured_on=origin.files,
    )


def _is_rate(name: str) -> bool:
    return name == "mean" or name.startswith(("pass@", "maj@"))


def _metric(name: str) -> str:
    """W&B sorts and groups by names of letters, digits and underscores alone."""
    return name.replace("@", "_at_")


def _row(policy: Mapping[str, Any]) -> dict[str, float]:
    row = {} if policy["step"] is None else {"policy/step": policy["step"]}
    for name, found in policy["measures"].items():
        for suffix, end in (("", "value"), ("_low", "low"), ("_high", "high")):
            if found[end] is not None:
                row[f"eval/{_metric(name)}{suffix}"] = found[end]
    return row


def _against_k(found: Evaluation) -> Chart:
    rates = [
        (p["policy"], n, e["value"]) for p in found.policies for n, e in p["measures"].items() if n.startswith("pass@")
    ]
    table = Table(
        ["policy", "k", "pass"], [[policy, int(name.partition("@")[2]), value] for policy, name, value in rates]
    )
    return Chart("line", table, "k", "pass", "pass@k against k", "policy")


def _completions(file: Path, policies: int) -> Table:
    """As many responses of each policy."""
    if not file.is_file():
        return Table(["policy", "prompt", "response", "reward"], [])
    frame = read_table(file)
    columns = [
        name
        for name in ("policy", "prompt_index", "prompt", "response", "reward", "unscorable", "tokens", "finished")
        if name in frame.columns
    ]
    return table_of(
        frame.select(columns).group_by("policy", maintain_order=True).head(MOST_COMPLETIONS // max(1, policies))
    )
