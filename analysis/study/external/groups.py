"""From single responses to prompts with their responses: steps kept apart, copies dropped, what does not count counted."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from analysis.study.external.record import Record, hashable
from opo.errors import UserError

CHANCE = 1e-6  # of a coincidence, below which groups that are equal are copies


@dataclass(frozen=True)
class Group:
    """All responses to one prompt that one policy gave."""

    step: int | None
    name: str
    records: list[Record]


def group(records: Sequence[Record]) -> list[Group]:
    """Groups in the order in which they are first seen. Raises UserError where one id stands for two prompts."""
    records_of: dict[Hashable, list[Record]] = {}
    for record in records:
        key = ("prompt", hashable(record.prompt)) if record.group is None else ("id", record.group)
        records_of.setdefault((record.step, key), []).append(record)
    steps = {record.step for record in records}
    groups = []
    for number, rows in enumerate(records_of.values()):
        first = rows[0]
        for other in rows:
            if other.prompt != first.prompt and None not in (other.prompt, first.prompt):
                raise UserError(
                    f"{other.where} has another prompt than {first.where}, but the same id {named(first.group)}; "
                    "an id stands for one prompt at one step"
                )
        name = str(number) if first.group is None else named(first.group)
        groups.append(Group(first.step, f"step {first.step}: {name}" if len(steps) > 1 else name, rows))
    return groups


def named(identity: Hashable) -> str:
    """An id as it is shown."""
    if isinstance(identity, tuple):
        return "/".join(str(part) for part in identity if part is not None)
    return str(identity)


def without_copies(groups: Sequence[Group]) -> tuple[list[Group], int]:
    """Groups without those that stand there a second time, and how many responses that leaves out.

    TRL writes a batch again under the next step, and files are listed twice. A group is a copy where the same responses with the same
    rewards make up another step's group of the same prompt, or occur equally often within it; one short answer given eight times does
    too, so the groups of a step are copies only where chance would hardly (1e-6) make them equal.
    """
    single, dropped = _once(groups)
    kept: list[Group] = []
    by_step: dict[int | None, list[Group]] = {}
    for item in single:
        by_step.setdefault(item.step, []).append(item)
    earlier: list[dict[Hashable, Counter[Hashable]]] = []
    for items in by_step.values():
        here = {_prompt(item): _content(item.records) for item in items}
        copies: set[Hashable] = set()
        for there in earlier:
            shared = [key for key in here if key in there]
            equal = {key for key in shared if here[key] == there[key]}
            if equal and _chance([_log_chance(here[key], 1) for key in equal], len(shared)) < CHANCE:
                copies |= equal
        dropped += sum(len(item.records) for item in items if _prompt(item) in copies)
        kept += [item for item in items if _prompt(item) not in copies]
        earlier.append(here)
    return kept, dropped


def _once(groups: Sequence[Group]) -> tuple[list[Group], int]:
    """Each group once where its responses all occur equally often, and more often than chance would have it."""
    times = {n: math.gcd(*_content(item.records).values()) for n, item in enumerate(groups)}
    repeated = {n: count for n, count in times.items() if count > 1}
    logs = []
    for n, count in repeated.items():
        counts = Counter({key: many // count for key, many in _content(groups[n].records).items()})
        logs.append(_log_chance(counts, count - 1))
    if not repeated or _chance(logs, len(groups)) >= CHANCE:
        return list(groups), 0
    shared = math.gcd(*repeated.values())
    if shared < 2:
        return list(groups), 0
    found, dropped = [], 0
    for n, item in enumerate(groups):
        if n not in repeated:
            found.append(item)
            continue
        left = Counter({key: many // shared for key, many in _content(item.records).items()})
        rows = []
        for record in item.records:
            if left[_key(record)] > 0:
                left[_key(record)] -= 1
                rows.append(record)
        dropped += len(item.records) - len(rows)
        found.append(Group(item.step, item.name, rows))
    return found, dropped


def _prompt(item: Group) -> Hashable:
    first = item.records[0]
    return hashable(first.prompt), first.group


def _key(record: Record) -> Hashable:
    return hashable(record.response), str(record.reward), hashable(record.logprobs)


def _content(records: Iterable[Record]) -> Counter[Hashable]:
    return Counter(_key(record) for record in records)


def _log_chance(counts: Counter[Hashable], times: int) -> float:
    """Log-probability that as many draws with these frequencies have exactly these counts, `times` times."""
    n = sum(counts.values())
    log = math.lgamma(n + 1) + sum(c * math.log(c / n) - math.lgamma(c + 1) for c in counts.values())
    return times * log


def _chance(logs: Sequence[float], among: int) -> float:
    """That some `len(logs)` of `among` groups do it."""
    ways = math.lgamma(among + 1) - math.lgamma(len(logs) + 1) - math.lgamma(among - len(logs) + 1)
    return math.exp(min(0.0, sum(logs) + ways))
