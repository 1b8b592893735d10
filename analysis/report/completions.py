"""The section of a report that shows what the policies wrote: for some prompts the response of most and of least reward."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from analysis.report.blocks import Block, Section, fold, table, text
from analysis.report.sources import Sources
from analysis.study.pools import read_arrays
from opo.system.records import read_table

PROMPTS, LONGEST = 3, 600
COLUMNS = ("prompt", "response", "reward", "tokens")


def section(sources: Sources) -> Section | None:
    """Of the study where its pools are there, else of the last batches that runs kept; None where there is neither."""
    blocks: list[Block] = list(_of_study(sources)) or list(_of_evaluation(sources)) or list(_of_runs(sources))
    if not blocks:
        return None
    words = (
        "The first prompts, each with its response of highest and of lowest reward; one where all earn the same. "
        f"Text beyond {LONGEST} characters is left out and marked “…”."
    )
    return Section("completions", "Completions", [text(words), *blocks])


def _of_study(sources: Sources) -> Iterator[Block]:
    if sources.study is None or sources.study_folder is None:
        return
    for policy in reversed(sources.study.policies):
        files = sorted((sources.study_folder / "pools" / policy["name"]).glob("prompt-*.npz"))[:PROMPTS]
        rows = [row for file in files for row in _of_pool(file)]
        if rows:
            block = table(f"Sampled at {policy['label']}", COLUMNS, rows)
            is_last = policy["name"] == sources.study.last_policy
            yield block if is_last else fold(f"At {policy['label']}", [block])


def _of_pool(file: Path) -> list[list[str]]:
    prompt, responses, rewards, lengths = read_arrays(file, ["prompt", "responses", "rewards_R", "lengths_R"]).values()
    return _rows(str(prompt), responses.tolist(), rewards.tolist(), lengths.tolist())


def _of_evaluation(sources: Sources) -> Iterator[Block]:
    file = sources.folder / "responses.parquet"
    if sources.evaluation is None or not file.is_file():
        return
    last = sources.evaluation.policies[-1]["policy"]
    for (policy,), frame in reversed(list(read_table(file).group_by("policy", maintain_order=True))):
        block = table(f"Sampled at {policy}", COLUMNS, _of_frame(frame))
        yield block if policy == last else fold(f"At {policy}", [block])


def _of_runs(sources: Sources) -> Iterator[Block]:
    if sources.runs is None:
        return
    shown = set()
    for row in sources.runs.runs.iter_rows(named=True):
        files = sorted((Path(row["path"]) / "rollouts").glob("step-*.parquet"))
        label = (row["algo"], row["updates_per_rollout"], row["task"], row["model"])
        if not files or label in shown:
            continue
        shown.add(label)
        rows = _of_frame(read_table(files[-1]))
        block = table(f"{row['run']}, {files[-1].stem.replace('-', ' ')}", COLUMNS, rows)
        yield block if len(shown) == 1 else fold(str(row["run"]), [block])


def _of_frame(frame: pl.DataFrame) -> list[list[str]]:
    """Of a table of completions."""
    rows = []
    for _, group in list(frame.group_by("prompt_index", maintain_order=True))[:PROMPTS]:
        texts, rewards, tokens = (group[name].to_list() for name in ("response", "reward", "tokens"))
        rows += _rows(group["prompt"][0], texts, [np.nan if r is None else r for r in rewards], tokens)
    return rows


def _rows(prompt: str, responses: list[str], rewards: list[float], tokens: list[int]) -> list[list[str]]:
    scored = [i for i in range(len(rewards)) if np.isfinite(rewards[i])]
    if not scored:
        return [[_cut(prompt), _cut(responses[0]), "unscored", str(tokens[0])]] if responses else []
    ends = (max(scored, key=lambda i: rewards[i]), min(scored, key=lambda i: rewards[i]))
    kept = ends if rewards[ends[0]] > rewards[ends[1]] else ends[:1]
    return [[_cut(prompt), _cut(responses[i]), f"{rewards[i]:g}", str(tokens[i])] for i in kept]


def _cut(words: str) -> str:
    return words if len(words) <= LONGEST else words[:LONGEST] + "…"
