"""The one table of metric names, and the rows of `metrics.jsonl`.

A name ends in its unit. Nothing outside this table is logged, no value is NaN or infinite, and a metric that is
undefined in a step is absent from its row. Only `time/*`, `memory/*` and `*tokens_per_s` may differ between two runs of
the same config.
"""

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from opo.errors import UserError
from opo.system.atomic import replacing, write_text
from opo.system.records import refuse_no_file

SUMS = "metrics.crc32"  # CRC-32 of each line of metrics.jsonl, up to the newest checkpoint


class Metric(NamedTuple):
    """What a metric is counted in (1 for a pure number) and what it says."""

    unit: str
    description: str


METRICS: dict[str, Metric] = {
    "train/step": Metric("steps", "rollout batches used so far; the x-axis of every other metric"),
    "train/reward_mean": Metric("reward", "mean over this batch's scored responses"),
    "train/reward_std": Metric("reward", "standard deviation (n - 1) over this batch's scored responses"),
    "reward/*": Metric(
        "reward", "NAME_mean of each function of a reward that sums several: unweighted, over the scored responses"
    ),
    "train/grad_norm": Metric("1", "Euclidean norm of the gradient before clipping, mean over updates"),
    "train/clipped": Metric("fraction", "share of updates whose gradient was scaled down to optim.max_grad_norm"),
    "train/moved_fraction": Metric(
        "fraction",
        "share of weights that an update changed, of at most 65,536 evenly spaced ones, mean over updates; far below 1 in "
        "bfloat16 where the step is smaller than the weights' rounding",
    ),
    "train/learning_rate": Metric("1", "of the last update"),
    "train/entropy_mean_nats": Metric("nats", "entropy of the next-token distribution, mean over sampled tokens"),
    "train/entropy_sampled_nats": Metric(
        "nats", "-log-probability of a sampled token, mean: the same expectation from what was drawn alone"
    ),
    "train/kl_init_nats": Metric(
        "nats per token", "k3 estimate of KL(policy || initial policy), mean over sampled tokens"
    ),
    "train/ratio_mean": Metric("1", "importance ratio policy / sampling policy, mean over tokens and updates"),
    "train/ratio_max": Metric("1", "largest token importance ratio of this batch's updates"),
    "train/clip_fraction": Metric("fraction", "share of tokens whose gradient the algorithm's clipping removed"),
    "train/constant_groups_fraction": Metric("fraction", "share of prompts whose responses all have one reward"),
    "train/unscorable_count": Metric(
        "responses", "whose reward could not be computed; they are left out of every baseline"
    ),
    "train/updates": Metric("updates", "optimizer steps so far"),
    "train/tokens": Metric("tokens", "response tokens sampled for training so far, greedy and second batches included"),
    "critic/loss": Metric("reward^2", "value loss, mean over updates"),
    "critic/grad_norm": Metric("1", "Euclidean norm of the critic's gradient before clipping, mean over updates"),
    "length/tokens_mean": Metric("tokens", "response length, the end-of-text included where it was sampled"),
    "length/tokens_min": Metric("tokens", "shortest response of the batch"),
    "length/tokens_max": Metric("tokens", "longest response of the batch"),
    "length/tokens_std": Metric("tokens", "standard deviation (n - 1) of response length"),
    "length/truncated_fraction": Metric("fraction", "share of responses cut at rollout.max_new_tokens"),
    "length/reward_correlation": Metric("1", "Pearson correlation of length and reward over scored responses"),
    "mismatch/logprob_abs_mean_nats": Metric(
        "nats", "|trainer - sampler| log-probability of a sampled token, mean, before any update"
    ),
    "mismatch/logprob_abs_max_nats": Metric("nats", "largest |trainer - sampler| log-probability of a sampled token"),
    "mismatch/k1_nats": Metric(
        "nats per token", "k1 estimate of KL(sampler || trainer): mean of log sampler - log trainer"
    ),
    "mismatch/k3_nats": Metric(
        "nats per token", "k3 estimate of KL(sampler || trainer): mean of r - 1 - log r, r = trainer / sampler"
    ),
    "mismatch/ess_fraction": Metric(
        "fraction", "effective sample size of the responses' weights trainer / sampler, over their number"
    ),
    "mismatch/corrected": Metric(
        "1", "1 where the batch was not exactly on-policy and its weights were corrected by truncated ratios, else 0"
    ),
    "eval/reward_mean": Metric("reward", "mean over held-out prompts"),
    "eval/reward_low": Metric("reward", "lower end of its 95 % interval over prompts"),
    "eval/reward_high": Metric("reward", "upper end of its 95 % interval over prompts"),
    "eval/length_tokens_mean": Metric("tokens", "response length on held-out prompts"),
    "time/rollout_s": Metric("s", "sampling and scoring"),
    "time/logprob_s": Metric("s", "log-probabilities of reference, critic and others, before the updates"),
    "time/update_s": Metric("s", "forward and backward passes and optimizer steps"),
    "time/eval_s": Metric("s", "evaluation on held-out prompts"),
    "time/step_s": Metric("s", "the whole step without writing it down"),
    "time/wait_share": Metric(
        "fraction",
        "share of the step that sampling and updating wait for each other: what sampling the next batch during the update would "
        "hide, were it exactly on-policy",
    ),
    "time/ranks_wait_s": Metric("s", "messages between ranks, waiting for the slowest included; of rank 0"),
    "memory/peak_mib": Metric("MiB", "peak of the accelerator's memory, or of the process where there is none"),
    "rollout/tokens_per_s": Metric("tokens/s", "response tokens sampled, over time/rollout_s"),
    "update/tokens_per_s": Metric("tokens/s", "response tokens sampled, over time/update_s"),
}


def reproducible(name: str) -> bool:
    """Whether two runs of the same config must agree in this metric to the last bit."""
    return not (name.startswith(("time/", "memory/")) or name.endswith("tokens_per_s"))


def checked_row(step: int, metrics: dict[str, float]) -> dict[str, float]:
    """The row of one step, `train/step` first.

    Raises ValueError that names the first metric which METRICS does not hold, or which is no finite number.
    """
    row: dict[str, float] = {"train/step": step}
    for name, value in metrics.items():
        if name not in METRICS and not name.startswith("reward/"):
            raise ValueError(f"metric {name!r} at step {step} is not in opo.run.metrics.METRICS: describe it there")
        if not math.isfinite(value):
            raise ValueError(f"metric {name!r} at step {step} is {value}: leave an undefined metric out")
        row[name] = value
    if row["train/step"] != step:
        raise ValueError(f"metric 'train/step' is {row['train/step']} in the row of step {step}")
    return row


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, which may be still growing or cut by a kill: a last line without its end is left out.

    Raises UserError that names a line which is no JSON object, or is not as it was when its checksum was taken.
    """
    refuse_no_file(file)
    if not file.exists():
        return
    sums = _sums(file)
    for number, line in enumerate(_lines(file), start=1):
        try:
            row = json.loads(line, parse_constant=_no_number, parse_float=_finite)
        except ValueError:
            row = None
        if not isinstance(row, dict) or type(row.get("train/step")) is not int:
            raise UserError(
                f"{file}, line {number}: not a row of metrics (a JSON object with train/step, a whole number)"
            )
        if number <= len(sums) and _sum(line) != sums[number - 1]:
            raise UserError(
                f"{file}, line {number}: damaged, its checksum in {SUMS} is another; restore both files from a copy"
            )
        yield row


def seal_rows(file: Path, most: int | None = None) -> None:
    """Keep the checksum of every row there is, or of the first `most`, in the file `SUMS` beside it."""
    if file.is_file():
        rows = [_sum(line) for line in _lines(file)[:most]]
        write_text(file.with_name(SUMS), "".join(f"{checksum}\n" for checksum in rows))


def cut_rows(file: Path, most: int) -> None:
    """Keep the first `most` rows as they are, byte by byte."""
    with replacing(file) as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in _lines(file)[:most]))


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(name: str) -> float:
    """NaN and infinities, which no metric is."""
    raise ValueError(name)


def _lines(file: Path) -> list[bytes]:
    return file.read_bytes().split(b"\n")[:-1]


def _sums(file: Path) -> list[str]:
    beside = file.with_name(SUMS)
    refuse_no_file(beside)
    return beside.read_text(errors="replace").splitlines() if beside.is_file() else []


def _sum(line: bytes) -> str:
    return f"{zlib.crc32(line):08x}"
