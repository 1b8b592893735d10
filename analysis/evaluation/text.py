"""An evaluation in words and cells, the same on the terminal and on the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.evaluation.result import Evaluation
from analysis.variance.text import interval_text

MEASURED = ("measure", "value [95 %]", "prompts")
INTERVALS = "95 % intervals for other prompts of the kind"


def measure_rows(policy: Mapping[str, Any]) -> list[list[str]]:
    """One row a measure of one policy."""
    return [[name, _text(found), str(found["num_prompts"])] for name, found in policy["measures"].items()]


def policies_rows(found: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of all policies side by side, one row a measure."""
    names = list(dict.fromkeys(name for policy in found.policies for name in policy["measures"]))
    cells = [
        [_text(p["measures"][name]) if name in p["measures"] else "open" for p in found.policies] for name in names
    ]
    return ["measure", *(p["policy"] for p in found.policies)], [[n, *c] for n, c in zip(names, cells, strict=True)]


def difference_title(found: Evaluation) -> str:
    """What is subtracted from what, and how p-values were corrected."""
    references = {d["reference"] for d in found.differences}
    what = f"minus {next(iter(references))}" if len(references) == 1 else "each policy minus another"
    return f"{what}, prompt by prompt; p corrected for all {len(found.differences)} comparisons (Holm)"


def difference_rows(found: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the paired differences."""
    rows = [[d["policy"], d["reference"], d["measure"], _text(d), f"{d['p_holm']:.2g}"] for d in found.differences]
    return ["policy", "minus", "measure", "difference [95 %]", "p"], rows


def sentence(found: Evaluation) -> str:
    """What the evaluation found: the last policy's rate, and its difference to what it is compared with."""
    last = found.policies[-1]
    measures: Sequence[str] = [name for name in ("pass@1", "mean") if name in last["measures"]]
    if not measures:
        return f"No response of {last['policy']} could be scored."
    rate = last["measures"][measures[0]]
    task = " and ".join(found.settings.get("tasks", [])) or "its task"
    words = f"On {rate['num_prompts']} prompts of {task}, {last['policy']} has {measures[0]} {_text(rate)}"
    pairs = [d for d in found.differences if d["policy"] == last["policy"] and d["measure"] == measures[0]]
    compared = [f"its difference to {d['reference']} is {_text(d)} ({_meaning(d)})" for d in pairs]
    return "; ".join([words, *compared]) + "."


def _meaning(difference: Mapping[str, Any]) -> str:
    if difference["p_holm"] > 0.05:
        return "so many prompts do not tell them apart"
    return "better" if difference["value"] > 0 else "worse"


def _text(estimate: Mapping[str, Any]) -> str:
    return interval_text(estimate["value"], estimate["low"], estimate["high"])
