"""Rollouts from elsewhere: files of other trainers, each by its own columns, as the prompts and responses of a study.

`read_groups` reads files into groups (no model is needed), `encode_groups` makes token ids of them (a tokenizer and a config, no weights).
A format is one module with a NAME, `matches(columns)` and `records(table, choice)`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from analysis.study.external import (
    open_instruct,
    plain,
    prime_parquet,
    prime_rollouts,
    prime_traces,
    trl,
    verl,
)
from analysis.study.external.checks import checked
from analysis.study.external.encode import EncodedPrompt, Encoder
from analysis.study.external.files import read_table
from analysis.study.external.groups import Group, group, without_copies
from analysis.study.external.json_text import with_messages
from analysis.study.external.notes import Notes
from analysis.study.external.reader import Reader
from analysis.study.external.record import Record, RewardChoice, Table
from opo.errors import UserError

FORMATS = (prime_parquet, prime_traces, prime_rollouts, trl, verl, open_instruct, plain)  # the most particular first

__all__ = ["EncodedPrompt", "Encoder", "Group", "Notes", "Reader", "RewardChoice", "encode_groups", "read_groups"]


def read_groups(
    files: Sequence[Path], choice: RewardChoice, steps: Sequence[int] | None = None
) -> tuple[list[Group], Notes]:
    """The groups of all files. `steps` picks steps of training; None: there must be one; empty: all.

    Raises UserError, one line, that names the file and the column, row or key at fault.
    """
    notes, records = Notes(), list[Record]()
    for file in files:
        table = read_table(file)
        form = format_of(table)
        rows = with_messages(form.records(table, choice))
        choice.check(file, [*dict.fromkeys([*table.columns, *(name for row in rows for name in row.numbers)])])
        notes.files.append({"path": str(file), "format": form.NAME, "rows": len(table.rows)})
        records += map(checked, rows)
    if choice.weights:
        notes.reward = " + ".join(f"{weight:g} {name}" for name, weight in choice.weights.items())
    records = _of_steps(records, steps, files, notes)
    notes.left_out.update(record.left_out for record in records if record.left_out)
    groups = group([record for record in records if not record.left_out])
    if not groups:
        raise UserError(f"rollouts={_names(files)}: no response counts; left out are {notes.counted()}")
    groups, copies = without_copies(groups, records)
    if copies:
        notes.left_out["of groups that stand there twice (copies)"] = copies
    _policy(groups, steps, notes, files)
    _temperature(groups, notes, files)
    return groups, notes


def format_of(table: Table) -> ModuleType:
    """The format that the columns are of. Raises UserError naming what a plain table needs."""
    columns = {*table.columns}
    for form in FORMATS:
        if form.matches(columns):
            return form
    missing = [name for name in ("prompt", "response", "reward") if name not in columns]
    hint = "NeMo-RL's train_data is not read; " if {"token_loss_mask", "content"} <= columns else ""
    raise UserError(
        f"rollouts={table.file}: {hint}column {missing[0]} is missing; needed are prompt, response, reward (optional prompt_id, logprobs, "
        f"answer, finish_reason, step), or the columns of {', '.join(form.NAME for form in FORMATS[:-1])}; it has {', '.join(map(str, table.columns))}"
    )


def encode_groups(
    groups: Sequence[Group], choice: RewardChoice, encoder: Encoder, most: int | None = None
) -> list[EncodedPrompt]:
    """The prompts as token ids, the first `most` responses of each; what had to be done is counted in the encoder's notes."""
    notes, encoded = encoder.notes, []
    for item in groups:
        rows = Group(item.step, item.name, item.records[:most])
        made = encoder.encode(rows, [choice.of(record) for record in rows.records])
        if made is None:
            notes.prompts_left_out["without a response that counts"] += 1
            continue
        unscored = len(made.rewards) - made.scored
        if unscored:
            notes.left_out["without a reward"] += unscored
        encoded.append(made)
    encoder.finish()
    return encoded


def _of_steps(records: list[Record], steps: Sequence[int] | None, files: Sequence[Path], notes: Notes) -> list[Record]:
    if not steps:
        return records
    known = Counter(record.step for record in records)
    for step in steps:
        if step not in known:
            have = _some(sorted(s for s in known if s is not None)) or "none"
            raise UserError(f"step={step}: rollouts={_names(files)} has no such step; it has {have}")
    if known[None]:
        notes.left_out["without a step"] = known[None]
    return [record for record in records if record.step in steps]


def _policy(groups: Sequence[Group], steps: Sequence[int] | None, notes: Notes, files: Sequence[Path]) -> None:
    """Note the steps. Raises UserError where there are several, or rows of none beside them, and nobody chose."""
    notes.steps = sorted({item.step for item in groups if item.step is not None})
    unknown = [record for item in groups if item.step is None for record in item.records]
    notes.stepless = len(unknown)
    if steps is not None:
        return
    last = f"step={notes.steps[-1]} takes" if notes.steps else ""
    if notes.steps and unknown:
        raise UserError(
            f"rollouts={_names(files)}: {len(unknown)} rows have no step (the first: {unknown[0].where}), others are of step "
            f"{_some(notes.steps)}; {last} that step alone, step=all everything, all measured under the model given"
        )
    if len(notes.steps) > 1:
        raise UserError(
            f"rollouts={_names(files)}: has steps {_some(notes.steps)}, each of another policy; {last} "
            f"one of them, step=all (or a list) several, all measured under the model given"
        )


def _temperature(groups: Sequence[Group], notes: Notes, files: Sequence[Path]) -> None:
    """Note the one temperature, and how many responses say none. Raises UserError where there are several."""
    given = [record.temperature for item in groups for record in item.records]
    temperatures = sorted({temperature for temperature in given if temperature is not None})
    if len(temperatures) > 1:
        raise UserError(
            f"rollouts={_names(files)}: sampled at temperatures {_some(temperatures)}; one policy has one temperature"
        )
    notes.temperature = temperatures[0] if temperatures else None
    notes.temperature_unknown = given.count(None)


def _names(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _some(values: Sequence[float]) -> str:
    shown = [str(value) if isinstance(value, int) else f"{value:g}" for value in values]
    return ", ".join(shown) if len(shown) <= 8 else f"{', '.join(shown[:3])} ... {shown[-1]} ({len(shown)} of them)"
