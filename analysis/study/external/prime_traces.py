"""prime-rl since July 2026: `traces.jsonl`, one trace a line, and since August one episode of traces a line.

A trace is a chain of nodes with token ids and log-probabilities; the sampled one is the response, those before it the prompt. July:
`rewards` holds weighted numbers by name, `group_id` and `policy_version` stand beside them. August (an episode): `rewards` holds
{score, weight} or null, the group and the run's step stand in the episode, and an episode that failed has no trace.
"""

import math
from collections.abc import Mapping
from typing import Any

from analysis.study.external.prime_rollouts import step_of
from analysis.study.external.record import Record, RewardChoice, Table, number, text_of, whole
from opo.errors import UserError

NAME = "prime-rl traces"
FAILED = "of rollouts that failed (error)"


def matches(columns: set[str]) -> bool:
    return {"nodes", "rewards"} <= columns or {"traces", "group", "run"} <= columns


def records(table: Table, choice: RewardChoice) -> list[Record]:
    """One record a trace of an agent that is trained. Raises UserError on a trace of several sampled turns."""
    parsed = []
    for n, row in enumerate(table.rows):
        where = table.where(n)
        if "nodes" in row or "traces" not in row:
            step = whole(row.get("policy_version"), where, "policy_version")
            group = (row.get("kind"), row.get("env_name"), row.get("group_id"))
            parsed.append(_record(where, row, group, step_of(table.file) if step is None else step))
            continue
        traces = [t for t in row.get("traces") or [] if (t.get("agent") or {}).get("trainable", True)]
        group, step = (row.get("group") or {}).get("id"), whole(_step(row), where, "run.work.policy.start")
        if not traces or row.get("ok") is False or row.get("errors"):
            parsed.append(Record(where, group, None, None, None, step=step, left_out=FAILED))
            continue
        parsed += [_record(where, trace, (group, (trace.get("agent") or {}).get("name")), step) for trace in traces]
    return parsed


def _step(episode: Mapping[str, Any]) -> Any:
    """The version of the policy that began the rollout, else the training step."""
    work = (episode.get("run") or {}).get("work") or {}
    start = (work.get("policy") or {}).get("start")
    return work.get("step") if start is None else start


def _record(where: str, trace: Mapping[str, Any], group: Any, step: int | None) -> Record:
    failed = bool(trace.get("errors")) or trace.get("ok") is False
    nodes = trace.get("nodes") or []
    sampled = [n for n, node in enumerate(nodes) if node.get("sampled")]
    if len(sampled) > 1:
        raise UserError(f"{where} has {len(sampled)} sampled turns; rollouts of one turn are read")
    numbers = {name: _weighted(value, where, name) for name, value in (trace.get("rewards") or {}).items()}
    known = [value for value in numbers.values() if not math.isnan(value)]
    prompt, response, logprobs = _turn(nodes, sampled[0]) if sampled else (None, None, None)
    data = (trace.get("task") or {}).get("data") or {}
    return Record(
        where=where,
        group=group,
        prompt=prompt,
        response=response,
        reward=math.fsum(known) if known else None,
        numbers=(trace.get("metrics") or {}) | numbers,
        logprobs=logprobs,
        answer=text_of(data.get("answer")),
        truncated=trace.get("is_truncated"),
        step=step,
        left_out=FAILED if failed else None,
    )


def _weighted(value: Any, where: str, name: str) -> float:
    """Score times weight, or the number that is weighted already; NaN for null."""
    if isinstance(value, Mapping):
        weight = 1.0 if value.get("weight") is None else number(value["weight"], where, f"the weight of {name}")
        return number(value.get("score"), where, name) * weight
    return number(value, where, name)


def _turn(nodes: list[dict[str, Any]], last: int) -> tuple[Any, Any, Any]:
    """Prompt, response and log-probabilities of the node `last`: token ids where every node has them, else messages."""
    before, parent = [], nodes[last].get("parent")
    while parent is not None and len(before) <= len(nodes):
        before.append(nodes[parent])
        parent = nodes[parent].get("parent")
    before.reverse()
    node = nodes[last]
    if node.get("token_ids") and before and all(other.get("token_ids") for other in before):
        prompt = [token for other in before for token in other["token_ids"]]
        ids, mask = node["token_ids"], node.get("mask") or []
        cut = next((k for k, own in enumerate(mask) if own), 0)  # what the template put before the sampled tokens
        logprobs = node.get("logprobs") or None
        if logprobs is not None and len(logprobs) == len(ids):
            logprobs = logprobs[cut:]
        return prompt + ids[:cut], ids[cut:], logprobs
    return [other.get("message") for other in before], [node.get("message")], None
