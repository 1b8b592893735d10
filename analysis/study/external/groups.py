"""From single responses to prompts with their responses: steps kept apart, copies dropped, what does not count counted."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
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
    groups, names = [], dict[tuple[int | None, str], Record]()
    for number, rows in enumerate(records_of.values()):
        first = rows[0]
        for other in rows:
            if other.prompt != first.prompt and None not in (other.prompt, first.prompt):
                raise UserError(
                    f"{other.where} has another prompt than {first.where}, but the same id {named(first.group)}; "
                    "an id stands for one prompt at one step"
                )
        name = str(number) if first.group is None else named(first.group)
        if first.group is not None and (other := names.setdefault((first.step, name), first)) is not first:
            raise UserError(
                f"{first.where} has the id {name} in another type than {other.where}; ids are all text or all numbers"
            )
        groups.append(Group(first.step, f"step {first.step}: {name}" if len(steps) > 1 else name, rows))
    return groups


def named(identity: Hashable) -> str:
    """An id as it is shown."""
    if isinstance(identity, tuple):
        return "/".join(str(part) for part in identity if part is not None)
    return str(identity) if str(identity).strip() else repr(identity)


def without_copies(groups: Sequence[Group], records: Sequence[Record]) -> tuple[list[Group], int]:
    """Groups, of these records as they were read, without those that stand there a second time, and how many responses that leaves out.

    TRL writes a batch again under the next step, and files are listed twice. A group is a copy where the same responses with the same
    rewards make up another step's group of the same prompt, or occur equally often within it; one short answer given eight times does
    too, so the groups of a step are copies only where chance would hardly (1e-6) make them equal.
    """
    single, dropped = _once(groups, {id(record): n for n, record in enumerate(records)})
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
            if equal and _log_chance_among([_log_chance(here[key], 1) for key in equal], len(shared)) < math.log(
                CHANCE
            ):
                copies |= equal
        dropped += sum(len(item.records) for item in items if _prompt(item) in copies)
        kept += [item for item in items if _prompt(item) not in copies]
        earlier.append(here)
    return kept, dropped


def _once(groups: Sequence[Group], place: Mapping[int, int]) -> tuple[list[Group], int]:
    """Each group once where its responses all occur equally often, and more often than chance would have it.

    How often is the number of times that chance explains least. Responses that are all equal occur equally often in any case: such a group
    is taken for a repeated one where it is as large as those that show it, or its parts stand as far apart as theirs.
    """
    contents = [_content(item.records) for item in groups]
    times = [math.gcd(*content.values()) for content in contents]

    def showing(count: int) -> list[int]:
        return [n for n, often in enumerate(times) if often % count == 0 and len(contents[n]) > 1]

    def log_chance(count: int) -> float:
        once = [Counter({key: many // count for key, many in contents[n].items()}) for n in showing(count)]
        return _log_chance_among([_log_chance(content, count - 1) for content in once], len(groups))

    count = min(range(2, max(times, default=1) + 1), key=log_chance, default=1)
    if count == 1 or log_chance(count) >= math.log(CHANCE):
        return list(groups), 0

    def apart(n: int) -> int:
        rows = groups[n].records
        return place[id(rows[len(rows) // count])] - place[id(rows[0])]

    distances = {apart(n) for n in showing(count)}
    repeated, least = {*showing(count)}, min(len(groups[n].records) for n in showing(count))
    found, dropped = [], 0
    for n, item in enumerate(groups):
        constant = len(contents[n]) == 1 and times[n] % count == 0
        as_they = constant and (len(item.records) >= least or distances == {apart(n)})
        rows = _first_of(item.records, contents[n], count) if n in repeated or as_they else item.records
        dropped += len(item.records) - len(rows)
        found.append(Group(item.step, item.name, rows))
    return found, dropped


def _first_of(records: Sequence[Record], content: Counter[Hashable], count: int) -> list[Record]:
    """One in `count` of each response, the first ones."""
    left, rows = Counter({key: many // count for key, many in content.items()}), []
    for record in records:
        if left[_key(record)] > 0:
            left[_key(record)] -= 1
            rows.append(record)
    return rows


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


def _log_chance_among(logs: Sequence[float], among: int) -> float:
    """Log-probability that some `len(logs)` of `among` groups do it."""
    ways = math.lgamma(among + 1) - math.lgamma(len(logs) + 1) - math.lgamma(among - len(logs) + 1)
    return min(0.0, sum(logs) + ways)
