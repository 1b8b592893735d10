"""Rollouts from elsewhere: parquet or JSONL with the columns prompt_id, prompt, response, reward and optionally logprobs, answer."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from transformers import PreTrainedTokenizerBase

from opo.batch import Rollouts
from opo.errors import UserError

COLUMNS = ("prompt_id", "prompt", "response", "reward")


@dataclass(frozen=True)
class ForeignPrompt:
    """One prompt and all responses to it, each text or token ids."""

    prompt_id: str
    prompt: str | list[int]
    responses: list[str | list[int]]
    rewards: list[float]  # NaN: unscored
    logprobs: list[list[float]] | None
    answers: list[str | None] | None

    def rollouts(self, tokenizer: PreTrainedTokenizerBase, append_eos: bool) -> Rollouts:
        """As token ids. Text is encoded as it stands; a text response ends with end-of-text where `append_eos`."""
        prompt = tokenizer.encode(self.prompt) if isinstance(self.prompt, str) else list(self.prompt)
        end = [tokenizer.eos_token_id] if append_eos and tokenizer.eos_token_id is not None else []
        ids = [
            [*tokenizer.encode(r, add_special_tokens=False), *end] if isinstance(r, str) else list(r)
            for r in self.responses
        ]
        try:
            logprobs = None if self.logprobs is None else [self.logprobs]
            return Rollouts.from_lists(
                [prompt], [ids], [self.rewards], logprobs, None if self.answers is None else [self.answers]
            )
        except ValueError as error:
            raise UserError(f"rollouts: prompt_id {self.prompt_id}: {str(error).removeprefix('prompt 0: ')}") from error

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The responses as text."""
        return [r if isinstance(r, str) else str(tokenizer.decode(r, skip_special_tokens=True)) for r in self.responses]

    def prompt_text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return self.prompt if isinstance(self.prompt, str) else str(tokenizer.decode(self.prompt))


def read_rollouts(file: Path) -> list[ForeignPrompt]:
    """The prompts of a file, in the order in which they first occur. Raises UserError that names the column or row at fault."""
    if file.suffix not in (".parquet", ".jsonl"):
        raise UserError(f"rollouts={file}: a .parquet or .jsonl file is needed")
    try:
        table = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_ndjson(file, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"rollouts={file}: cannot be read as {file.suffix[1:]}: {str(error).splitlines()[0]}"
        ) from error
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise UserError(
            f"rollouts={file}: column {missing[0]} is missing; needed are {', '.join(COLUMNS)}, optional are logprobs, answer"
        )
    if table.is_empty():
        raise UserError(f"rollouts={file}: has no rows")
    for number, row in enumerate(table.iter_rows(named=True)):
        _check(file, number, row)
    found = []
    for (prompt_id,), group in table.group_by("prompt_id", maintain_order=True):
        prompts = group["prompt"].to_list()
        if any(prompt != prompts[0] for prompt in prompts):
            raise UserError(f"rollouts={file}: prompt_id {prompt_id} stands for different prompts")
        found.append(
            ForeignPrompt(
                str(prompt_id),
                prompts[0],
                group["response"].to_list(),
                [math.nan if reward is None else float(reward) for reward in group["reward"]],
                group["logprobs"].to_list() if "logprobs" in table.columns else None,
                group["answer"].to_list() if "answer" in table.columns else None,
            )
        )
    return found


def _check(file: Path, number: int, row: dict[str, Any]) -> None:
    for name in ("prompt_id", "prompt", "response"):
        if row[name] is None or (name != "prompt_id" and len(row[name]) == 0):
            raise UserError(f"rollouts={file}: row {number} has an empty {name}")
    reward = row["reward"]
    if reward is not None and (isinstance(reward, str) or math.isinf(reward)):
        raise UserError(
            f"rollouts={file}: row {number} has reward {reward}; a finite number, or null for unscored, is needed"
        )
