"""Tables, pictures and files that several kinds of results share."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from analysis.study.pools import read_arrays
from opo.tracking.lineage import Files
from opo.tracking.result import Table, wandb_id

MOST_COMPLETIONS = 2000  # rows of that table; all responses are in the artifact
CLAIM = (
    "id",
    "claim",
    "verdict",
    "effect",
    "low",
    "high",
    "low_threshold",
    "high_threshold",
    "p_holm",
    "about",
    "replicates",
    "unit",
)


def table_of(frame: pl.DataFrame) -> Table:
    """A frame as it is; what is not finite is null."""
    numbers = [name for name, kind in frame.schema.items() if kind.is_float()]
    known = frame.with_columns(pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in numbers)
    return Table(frame.columns, [list(row) for row in known.iter_rows()])


def ledger(claims_of: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Every claim with its verdict; `claims_of` maps what they are about to claims."""
    rows = [[label, *(claim.get(name) for name in CLAIM)] for label, claims in claims_of.items() for claim in claims]
    return Table(["policy", *CLAIM], rows)


def completions(folder: Path, policies: Sequence[Mapping[str, Any]]) -> Table:
    """The responses of a study's pools, as many of each policy."""
    each = MOST_COMPLETIONS // max(1, len(policies))
    rows = [row for policy in policies for row in _of_policy(folder / "pools" / policy["name"], policy["label"], each)]
    return Table(["policy", "prompt_id", "prompt", "response", "reward", "tokens"], rows)


def _of_policy(pools: Path, label: str, most: int) -> Iterator[list[Any]]:
    left = most
    for file in sorted(pools.glob("prompt-*.npz")):
        prompt_id, prompt, *columns = read_arrays(
            file, ["prompt_id", "prompt", "responses", "rewards_R", "lengths_R"]
        ).values()
        found = list(zip(*(column.tolist() for column in columns), strict=True))[:left]
        for response, reward, length in found:
            yield [label, str(prompt_id), str(prompt), response, reward, length]
        left -= len(found)
        if left <= 0:
            return


def images(folder: Path) -> dict[str, str]:
    """Every figure of a folder by its name."""
    return {f"figures/{file.stem}": str(file.resolve()) for file in sorted(folder.glob("*.png"))}


def files_of(folder: Path, kind: str, patterns: Sequence[str]) -> Files:
    """The files of a result as one artifact, of one name for the folder's life."""
    found = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    paths = {str(file.relative_to(folder)): str(file.resolve()) for file in found}
    return Files(f"{kind}-{wandb_id(folder)}", kind, paths=paths)
