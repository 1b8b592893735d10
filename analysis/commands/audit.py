"""`opo audit rollouts=FILE`: what rewards and lengths alone say of rollouts from elsewhere; no model is needed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as RichTable

from analysis.config.audit import AuditConfig, load_config, weighing
from analysis.plots.rewards import effective_shares
from analysis.plots.style import save
from analysis.study.external import Notes, read_groups
from analysis.study.external.audit import answers, audit
from analysis.study.external.messages import as_messages
from analysis.study.external.record import Record
from analysis.variance.intervals import FEWEST
from analysis.variance.text import interval_text
from opo.errors import UserError
from opo.system.atomic import write_text
from opo.system.console import wide_console
from opo.system.seeding import rng_for
from opo.system.terminal import say

COLUMNS = {
    "silent": "silent prompts",
    "effective_share": "effective share",
    "energy": "energy over leave-one-out's",
    "positive_share": "energy of A > 0",
    "length_rank": "rank corr. of A and length",
}


def main(values: dict[str, Any], folder: Path) -> None:
    """`opo audit`: write audit.json and figures into the folder and print a table."""
    found, notes = audited(load_config(values))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "audit.json", json.dumps(found | {"import": notes.to_dict()}, indent=1, allow_nan=False) + "\n")
    save(effective_shares(found), folder / "figures", "effective-shares")
    say(notes.read())
    say(_sentence(found))
    wide_console().print(_table(found))
    for line in _remarks(found["algorithms"]):
        say(line)
    say(f"{folder}/audit.json and figures/ are written")


def audited(config: AuditConfig) -> tuple[dict[str, Any], Notes]:
    """The audit as plain values, and what is said of the files. Raises UserError where fewer than two prompts can be used."""
    count, unit = _length(config.tokenizer)
    groups, notes = read_groups(config.files, config.reward.choice, config.steps)
    prompts = answers(groups, config.reward.choice, count)
    if len(prompts) < 2:
        raise UserError(
            f"rollouts={config.rollouts}: {'1 prompt has' if prompts else 'no prompt has'} two scored responses or more; two are needed"
        )
    notes.prompts, notes.responses = len(prompts), sum(len(p.rewards) for p in prompts)
    scored = sum(1 for group in groups for r in group.records if r.response is not None)
    if scored > notes.responses:
        notes.left_out["without a reward, or alone with their prompt"] = scored - notes.responses
    rng = rng_for(config.seed, "audit")
    found = audit(prompts, config.estimators or weighing(), config.num_bootstrap, rng)
    return {"schema": "opo.audit/1", "length_unit": unit} | found, notes


def _length(tokenizer: str | None) -> tuple[Any, str]:
    """How long a response is, and in what: ids are tokens anyway."""
    encoder: Any = None
    if tokenizer is not None:
        from transformers import AutoTokenizer

        try:
            encoder = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"tokenizer={tokenizer}: {str(error).splitlines()[0]}") from error

    def count(record: Record) -> int:
        messages = as_messages(record.response, record.where, "response")
        text: Any = record.response if messages is None else "".join(message["content"] for message in messages)
        if not isinstance(text, str):
            return len(text)
        return len(text) if encoder is None else len(encoder.encode(text, add_special_tokens=False)) + 1

    return count, "characters, or tokens where the file has ids" if encoder is None else "tokens, with the end of text"


def _sentence(found: Mapping[str, Any]) -> str:
    said = {
        key: _cell(found[key])
        for key in ("silent", "silent_at_most", "reward_mean", "length_mean", "reward_length_rank")
    }
    return (
        f"Silent prompts (all rewards equal): {said['silent']}, all at the highest reward: {said['silent_at_most']}. Mean reward "
        f"{said['reward_mean']}; mean length {said['length_mean']} ({found['length_unit']}); rank correlation of reward and length within "
        f"prompts {said['reward_length_rank']}."
    )


def _table(found: Mapping[str, Any]) -> RichTable:
    sizes = found["group_sizes"]
    size = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    intervals = (
        "95 % intervals over prompts"
        if found["prompts"] >= FEWEST
        else f"no intervals from fewer than {FEWEST} prompts"
    )
    title = f"Weights A of each algorithm on {found['prompts']} prompts, groups of {size}, {intervals}; energies up to the loss's scale"
    table = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("estimator", *COLUMNS.values()):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for name, measures in found["algorithms"].items():
        none = "not applicable" if "not_applicable" in measures else "open"
        table.add_row(name, *(_cell(measures[key]) if key in measures else none for key in COLUMNS))
    return table


def _remarks(algorithms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a number in the table hangs on, and why one is not there."""
    lines = [
        f"{name} is not applicable: {row['not_applicable']}"
        for name, row in algorithms.items()
        if "not_applicable" in row
    ]
    ordered = [name for name, row in algorithms.items() if row.get("by_order")]
    if ordered:
        lines.append(
            f"Weighed by the order of the responses in the file, another order gives other numbers: {', '.join(ordered)}"
        )
    return lines


def _cell(row: Mapping[str, Any]) -> str:
    return interval_text(row["value"], row["low"], row["high"]).removesuffix(", no interval")
