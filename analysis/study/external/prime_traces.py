"""prime-rl since July 2026: `traces.jsonl`, one trace a line, and since August one episode of traces a line.

A trace is a tree of nodes with token ids, masks and log-probabilities. The prompt is what stands before the first sampled node, the
response all from there to the last sampled one; the mask says which of its tokens the policy produced, not a tool or the template. July:
`rewards` holds weighted numbers by name, `group_id` and `policy_version` stand beside them. August (an episode): `rewards` holds
{score, weight} or null, the group and the run's step stand in the episode, and an episode that failed has no trace.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from analysis.study.external.messages import NEEDS_IDS
from analysis.study.external.prime_rollouts import step_of
from analysis.study.external.record import Record, RewardChoice, Table, flag, number, part_of, text_of, whole
from opo.errors import UserError

NAME = "prime-rl traces"
FAILED = "of rollouts that failed (error)"


def matches(columns: set[str]) -> bool:
    return {"nodes", "rewards"} <= columns or {"traces", "group", "run"} <= columns


def records(table: Table, choice: RewardChoice) -> list[Record]:
    """One record a trace of an agent that is trained. Raises UserError on a trace with branches, or of turns without token ids."""
    parsed = []
    for n, row in enumerate(table.rows):
        where = table.where(n)
        if "nodes" in row or "traces" not in row:
            step = whole(row.get("policy_version"), where, "policy_version")
            group = (row.get("kind"), row.get("env_name"), row.get("group_id"))
            parsed.append(_record(where, row, group, step_of(table.file) if step is None else step))
            continue
        traces = [t for t in _objects(row.get("traces"), where, "traces") if _trained(t, where)]
        group, step = (
            part_of(row.get("group"), where, "group").get("id"),
            whole(_step(row, where), where, "run.work.policy.start"),
        )
        if not traces or flag(row.get("ok"), where, "ok") is False or row.get("errors"):
            parsed.append(Record(where, group, None, None, None, step=step, left_out=FAILED))
            continue
        parsed += [_record(where, trace, (group, _agent(trace, where).get("name")), step) for trace in traces]
    return parsed


def _objects(value: Any, where: str, name: str) -> list[dict[str, Any]]:
    """A list of objects, empty where it is null."""
    if value is not None and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise UserError(f"{where} has {name} that are no list of objects")
    return value or []


def _agent(trace: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    return part_of(trace.get("agent"), where, "agent")


def _step(episode: Mapping[str, Any], where: str) -> Any:
    """The version of the policy that began the rollout, else the training step."""
    work = part_of(part_of(episode.get("run"), where, "run").get("work"), where, "run.work")
    start = part_of(work.get("policy"), where, "run.work.policy").get("start")
    return work.get("step") if start is None else start


def _trained(trace: Mapping[str, Any], where: str) -> bool:
    return flag(_agent(trace, where).get("trainable", True), where, "trainable") is not False


def _record(where: str, trace: Mapping[str, Any], group: Any, step: int | None) -> Record:
    failed = bool(trace.get("errors")) or flag(trace.get("ok"), where, "ok") is False
    nodes = _objects(trace.get("nodes"), where, "nodes")
    sampled = [n for n, node in enumerate(nodes) if flag(node.get("sampled"), where, "sampled")]
    numbers = {
        name: _weighted(value, where, name) for name, value in part_of(trace.get("rewards"), where, "rewards").items()
    }
    known = [value for value in numbers.values() if not math.isnan(value)]
    turns = _turns(nodes, sampled, where) if sampled and not failed else _Turns()
    data = part_of(part_of(trace.get("task"), where, "task").get("data"), where, "task.data")
    return Record(
        where=where,
        group=group,
        prompt=turns.prompt,
        response=turns.response,
        reward=math.fsum(known) if known else None,
        numbers={**part_of(trace.get("metrics"), where, "metrics"), **numbers},
        logprobs=turns.logprobs,
        produced=turns.produced,
        answer=text_of(data.get("answer")),
        truncated=flag(trace.get("is_truncated"), where, "is_truncated"),
        step=step,
        left_out=FAILED if failed else None,
    )


def _weighted(value: Any, where: str, name: str) -> float:
    """Score times weight, or the number that is weighted already; NaN for null."""
    if isinstance(value, Mapping):
        weight = 1.0 if value.get("weight") is None else number(value["weight"], where, f"the weight of {name}")
        return number(value.get("score"), where, name) * weight
    return number(value, where, name)


def _list(node: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """A list of a node, empty where it is null."""
    value = node.get(name)
    if value is not None and not isinstance(value, list):
        raise UserError(f"{where} has a node with {name} that is a {type(value).__name__}; a list is needed")
    return value or []


class _Turns(NamedTuple):
    prompt: Any = None
    response: Any = None
    produced: list[bool] | None = None
    logprobs: list[float] | None = None  # one for each token of the response, 0 where the policy did not produce it


def _turns(nodes: list[dict[str, Any]], sampled: list[int], where: str) -> _Turns:
    """From the root to the last sampled node: token ids where every node has them, else messages."""
    chain, place = [], sampled[-1]
    while place is not None and len(chain) <= len(nodes):
        if type(place) is not int or place not in range(len(nodes)):
            raise UserError(
                f"{where} has a node whose parent is {place!r}; its nodes are 0 to {len(nodes) - 1}, or null"
            )
        chain.append(place)
        place = nodes[place].get("parent")
    chain.reverse()
    if not {*sampled} <= {*chain}:
        raise UserError(f"{where} has sampled turns on several branches; a rollout of one branch is read")
    if not all(nodes[n].get("token_ids") for n in chain) or len(chain) < 2:
        if len(sampled) > 1:
            raise UserError(f"{where} has {len(sampled)} sampled turns and nodes without token ids; {NEEDS_IDS}")
        return _Turns([nodes[n].get("message") for n in chain[:-1]], [nodes[chain[-1]].get("message")])
    ids, produced, logprobs, known = list[int](), list[bool](), list[float](), True
    for n in chain:
        tokens, own = _list(nodes[n], "token_ids", where), n in sampled
        mask = [
            own and (m if type(m) is bool else flag(m, where, "mask") is True)
            for m in _list(nodes[n], "mask", where) or [own] * len(tokens)
        ]
        given = _list(nodes[n], "logprobs", where)
        if len(mask) != len(tokens):
            raise UserError(f"{where} has a node of {len(tokens)} token ids and a mask of {len(mask)}")
        if len(given) == sum(mask) < len(mask):
            rest = iter(given)
            given = [next(rest) if m else 0.0 for m in mask]
        known = known and (len(given) == len(tokens) or not any(mask))
        logprobs += (
            [number(v, where, "a log-probability") if m else 0.0 for v, m in zip(given, mask, strict=True)]
            if any(mask) and known
            else [0.0] * len(mask)
        )
        ids += tokens
        produced += mask
    if True not in produced:
        return _Turns()
    start, stop = produced.index(True), len(produced) - produced[::-1].index(True)
    inside = slice(start, stop)
    return _Turns(ids[:start], ids[inside], produced[inside], logprobs[inside] if known else None)
