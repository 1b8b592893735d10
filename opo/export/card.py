"""The model card of a checkpoint: what made it, as its run folder says, and nothing that was not measured."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from opo.run.folder import leaves
from opo.run.metrics import METRICS, read_rows
from opo.run.policies import Weights
from opo.system.records import read_json, read_sealed

SHOWN = ("train/reward_mean", "eval/reward_mean", "length/tokens_mean", "train/entropy_mean_nats", "train/kl_init_nats")


def model_card(weights: Weights, step: int | None, adapters: bool) -> str:
    """README.md of the folder: metadata that the hub reads, then training, provenance, measurements and the ledger."""
    assert weights.folder is not None
    run = weights.folder.absolute().parents[2] if weights.run else None  # <run>/checkpoints/step-000100/policy
    base = weights.model.path
    data = ModelCardData(
        library_name="peft" if adapters else "transformers",
        pipeline_tag="text-generation",
        tags=["reinforcement-learning", "opo-workbench", *([weights.run["algo"]["name"]] if weights.run else [])],
        base_model=base if base and not Path(base).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None,
        base_model_relation=None if base is None or Path(base).exists() else ("adapter" if adapters else "finetune"),
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {run.name if run else weights.folder.name}"]
    if run is None or weights.run is None:
        parts.append("No run folder is beside these weights, so how they were trained is not known here.")
    else:
        parts += [_training(weights, step), *_provenance(run), *_measured(run, step), *_ledger(run)]
    return "\n\n".join(parts) + "\n"


def _training(weights: Weights, step: int | None) -> str:
    """Algorithm, task and sampling in a sentence each, and the whole config."""
    run = weights.run or {}
    rollout, steps = run["rollout"], f"{step} of {run['steps']} steps" if step is not None else f"{run['steps']} steps"
    base = weights.model.path or f"the built-in policy {weights.model.name}"
    config = yaml.safe_dump(run, sort_keys=False, allow_unicode=True).strip()
    return (
        f"{base}, trained with the algorithm `{run['algo']['name']}` on the task `{run['task']['name']}` for {steps} of "
        f"{rollout['num_prompts']} prompts x {rollout['group_size']} responses, sampled at temperature {rollout['temperature']} "
        f"with at most {rollout['max_new_tokens']} new tokens. The numbers below hold at that temperature.\n\n"
        f"<details><summary>config.yaml</summary>\n\n```yaml\n{config}\n```\n\n</details>"
    )


def _provenance(run: Path) -> Iterator[str]:
    """Versions, commit, device and seeds from run.json."""
    record = read_json(run / "run.json")
    rows = {**leaves({"version": record.get("versions") or {}, "seed": record.get("seeds") or {}})}
    for place, state in (record.get("code") or {}).items():
        if state is not None:
            rows[f"commit of {place}"] = f"{state['commit']}{' with uncommitted changes' if state['diff'] else ''}"
    device = record.get("device") or {}
    rows["device"] = ", ".join(map(str, device.get("accelerators") or [device.get("machine")]))
    rows["started"], rows["resumed"] = record.get("started"), len(record.get("resumed") or [])
    yield "## Provenance\n\n" + _table(("", ""), [(key, value) for key, value in rows.items() if value is not None])


def _measured(run: Path, step: int | None) -> Iterator[str]:
    """The last row of metrics at or before the checkpoint; training metrics are those of that step's batch."""
    rows = [row for row in read_rows(run / "metrics.jsonl") if step is None or row["train/step"] <= step]
    if rows:
        last = rows[-1]
        cells = [(f"`{k}`", f"{last[k]:.4g}", METRICS[k].unit, METRICS[k].description) for k in SHOWN if k in last]
        yield f"## Metrics of step {last['train/step']}\n\n" + _table(("metric", "value", "unit", "meaning"), cells)


def _ledger(run: Path) -> Iterator[str]:
    """The verdicts of the nearest claims.json in the run folder or the two above it."""
    file = next(
        (folder / "claims.json" for folder in (run, *run.parents[:2]) if (folder / "claims.json").is_file()), None
    )
    if file is not None:
        claims = read_sealed(file)["claims"]
        cells = [
            (c.get("claim"), c.get("about"), _interval(c), f"{c.get('replicates')} {c.get('unit')}", c.get("verdict"))
            for c in claims
        ]
        yield "## Claims about the training\n\n" + _table(("claim", "about", "effect (95 %)", "over", "verdict"), cells)


def _interval(claim: dict[str, Any]) -> str:
    effect, low, high = (claim.get(key) for key in ("effect", "low", "high"))
    said = ["?" if value is None else f"{value:.3g}" for value in (effect, low, high)]
    return f"{said[0]} ({said[1]} to {said[2]})"


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; what would break a row is written out."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(str(c).split()).replace("|", r"\|") for c in line) + " |" for line in lines
    )
