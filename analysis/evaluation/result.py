"""What an evaluation leaves: `eval.json` (settings, measures of every policy, paired differences) and `responses.parquet`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

from analysis.evaluation.measures import Difference, Estimate
from opo.errors import UserError
from opo.system.atomic import write_text
from opo.system.manifest import refuse_changed, sha256
from opo.system.records import read_json, read_sealed, sealed

FILE, RESPONSES = "eval.json", "responses.parquet"
SCHEMA = "opo.evaluation/1"


@dataclass(frozen=True)
class Evaluation:
    """`policies`: policy, run, step, weights, and `measures` (name -> value, low, high, num_prompts); `differences`: the fields of
    `analysis.evaluation.measures.Difference`. A number that is not known is null.
    """

    settings: Mapping[str, Any]  # seed, split, prompts, responses, task, model, checkpoint
    policies: Sequence[Mapping[str, Any]]
    differences: Sequence[Mapping[str, Any]]

    def save(self, folder: Path) -> None:
        """Write eval.json beside the responses, whole or not at all."""
        files = {RESPONSES: sha256(folder / RESPONSES)}
        content = {"schema": SCHEMA, **self.settings, "policies": self.policies, "differences": self.differences}
        content |= {"files": files}
        write_text(folder / FILE, json.dumps(sealed(content), indent=2, allow_nan=False) + "\n")


def load(folder: Path) -> Evaluation:
    """The evaluation in a folder. Raises UserError where a file of it is damaged, or of another version."""
    if (schema := read_json(folder / FILE).get("schema")) != SCHEMA:
        raise UserError(f"{folder / FILE}: schema {schema!r}, this version reads {SCHEMA!r}")
    content = read_sealed(folder / FILE)
    for name, digest in content.pop("files").items():
        refuse_changed(folder / name, digest, FILE)
    return Evaluation(content, content.pop("policies"), content.pop("differences"))


def plain(record: Estimate | Difference) -> dict[str, Any]:
    """The fields, null where a number is not known."""
    return {key: None if value in (inf, -inf) else value for key, value in asdict(record).items()}
