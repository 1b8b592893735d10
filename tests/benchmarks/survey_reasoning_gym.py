"""Which datasets of reasoning-gym can be trusted with a reward: `python tests/benchmarks/survey_reasoning_gym.py [DATASET ...]`.

Writes `opo/tasks/reasoning_gym.csv`, a line a dataset; `opo/tasks/reasoning_gym.md` explains its columns. All of them take about four
minutes; with names only those lines are made anew.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ITEMS = 25
LIMIT_S = 180
UNRELATED = {
    "empty",
    "space",
    "word",
    "zero",
    "minus",
    "letter",
    "comma",
    "bracket",
    "list",
    "24",
    "long",
}  # to the gold answer
AROUND = {"text before", "text after", "text around", "or five", "twice"}  # the gold answer and something else
TABLE = Path(__file__).parents[2] / "opo" / "tasks" / "reasoning_gym.csv"
# what makes a scorer that evaluates its answer leave a mark: as Python, within a container, behind a number, through sympy's parser
PAYLOADS = ["open({0!r}, 'w')", "[open({0!r}, 'w')]", "5 + (open({0!r}, 'w') and 0)", "x*(open({0!r}, 'w') and 1)"]


def wrong_answers(gold: str, other: str) -> dict[str, str]:
    """Answers that nobody would pay, by kind; `other` is another item's gold answer."""
    kinds = {
        "empty": "", "space": " ", "word": "dunno", "zero": "0", "minus": "-1", "letter": "x", "comma": ",", "bracket": "(", "list": "[]",
        "24": "24", "long": "dunno " * 200,
    }  # fmt: skip
    if gold:
        kinds |= {
            "text before": f"The answer is not {gold}", "text after": f"{gold} or something else", "text around": f"maybe\n{gold}\nor not",
            "or five": f"{gold} or 5", "twice": f"{gold} {gold}", "doubled line": f"{gold}\n\n{gold}", "another item's": other,
        }  # fmt: skip
    return {kind: text for kind, text in kinds.items() if text.strip() != gold.strip()}


def main(names: list[str]) -> None:
    here = _asked("survey", "0", names)
    questions = [_asked("questions", seed, names) for seed in ("1", "2")]
    for name, row in here.items():
        digests = {row.pop("digest"), *(other[name] for other in questions)}
        row["same_questions"] = "yes" if len(digests) == 1 else "no"
    with TABLE.open(encoding="utf-8") as stream:
        rows = {row.pop("dataset"): row for row in csv.DictReader(stream)} if names else {}
    with TABLE.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(
            stream,
            lineterminator="\n",
            fieldnames=[
                "dataset",
                "oracle",
                "wrong_paid",
                "floor",
                "around",
                "raises",
                "executes",
                "same_questions",
                "number",
            ],
        )
        writer.writeheader()
        for name, row in sorted((rows | here).items()):
            writer.writerow({"dataset": name, **row})


def _asked(what: str, hash_seed: str, names: list[str]) -> dict[str, Any]:
    """What a fresh interpreter under this hash seed finds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TABLE.parents[2])}
        command = [sys.executable, __file__, what, str(out), *names]
        subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())


def _datasets(what: str, out: Path, names: list[str]) -> None:
    from reasoning_gym.factory import DATASETS

    found = {}
    for name in sorted(names or DATASETS):
        print(what, name, file=sys.stderr, flush=True)
        signal.signal(signal.SIGPROF, _too_slow)
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)  # of processor time: a busy machine finds the same
        try:
            found[name] = (survey if what == "survey" else digest)(_items(name))
        except Exception as error:
            found[name] = {"oracle": f"cannot be made: {error}"[:80], "digest": ""} if what == "survey" else ""
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    out.write_text(json.dumps(found))


def _too_slow(*_: Any) -> None:
    raise TimeoutError(f"slower than {LIMIT_S} s")


def _items(name: str) -> list[tuple[Any, dict[str, Any]]]:
    """(dataset, item 0) under `ITEMS` seeds, as the task draws them."""
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import DATASETS

    options = {"datasets": [DatasetSpec("gcd", 1, {}), DatasetSpec("chain_sum", 1, {})]} if name == "composite" else {}
    made = [DATASETS[name][0](DATASETS[name][1](seed=1000 * i, size=1, **options)) for i in range(ITEMS)]
    return [(dataset, dataset[0]) for dataset in made]


def digest(items: list[tuple[Any, dict[str, Any]]]) -> str:
    import hashlib

    return hashlib.sha256(json.dumps([item["question"] for _, item in items]).encode()).hexdigest()


def oracle_of(item: dict[str, Any]) -> str:
    """The gold answer, where some datasets hide it among the metadata; "" where there is none."""
    if item["answer"] is not None:
        return str(item["answer"])
    keys = ("example_answer", "possible_answer", "example_correct_answer")
    found = next((item["metadata"][key] for key in keys if key in item["metadata"]), "")
    return found if isinstance(found, str) else json.dumps(found)


def survey(items: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    from opo.tasks.answers import last_number

    paid, raised, floor, around, right, numbers, executes = set(), set(), 0.0, 0.0, 0, 0, False
    golds = [oracle_of(item) for _, item in items]
    for i, (dataset, item) in enumerate(items):
        right += _mark(dataset, item, golds[i]) == 1
        numbers += (read := last_number(golds[i])) is not None and _mark(dataset, item, read) == 1
        for kind, text in wrong_answers(golds[i], golds[(i + 1) % len(items)]).items():
            mark = _mark(dataset, item, text)
            if mark is None:
                raised.add(kind)
            elif mark == 1:
                paid.add(kind)
            elif kind in UNRELATED:
                floor = max(floor, min(mark, 1.0))
            elif kind in AROUND:
                around = max(around, min(mark, 1.0))
        executes = executes or _executes(dataset, item)
    return {
        "oracle": f"{right / len(items):g}" if any(golds) else "", "wrong_paid": "; ".join(sorted(paid)), "floor": f"{floor:.3g}", "around": f"{around:.3g}", "raises": "; ".join(sorted(raised)),
        "executes": "yes" if executes else "no", "number": f"{numbers / len(items):g}", "digest": digest(items),
    }  # fmt: skip


def _mark(dataset: Any, item: dict[str, Any], answer: str) -> float | None:
    try:
        return float(dataset.score_answer(answer, item))
    except (Exception, SystemExit):
        return None


def _executes(dataset: Any, item: dict[str, Any]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder, "mark")
        for payload in PAYLOADS:
            _mark(dataset, item, payload.format(str(mark)))
        return mark.exists()


if __name__ == "__main__":
    if sys.argv[1:2] in (["survey"], ["questions"]):
        _datasets(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    else:
        main(sys.argv[1:])
