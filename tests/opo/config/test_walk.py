"""Every numeric key of every command is refused just outside its range, and no override whatsoever is more than one line."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.config.audit import AuditConfig
from analysis.config.doctor import DoctorConfig
from analysis.config.evaluate import EvaluateConfig
from analysis.config.plan import PlanVariance
from analysis.config.report import ReportConfig
from analysis.config.verify import VerifyConfig
from analysis.study.config import VarianceConfig
from analysis.zoo.config import ZooConfig
from opo.catalogue import catalogue
from opo.cli import COMMANDS, load, take_apart
from opo.cli.compose import composed
from opo.cli.launch import check
from opo.config.describe import Interval, Key, bare, interval, keys_of
from opo.config.plan import PlanTrain
from opo.config.schema import RunConfig
from opo.config.track import TrackConfig
from opo.errors import UserError
from opo.export.config import VerlExport
from opo.tasks import TASKS

SCHEMAS = {
    "train": RunConfig,
    "variance": VarianceConfig,
    "audit": AuditConfig,
    "verify": VerifyConfig,
    "zoo": ZooConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "track": TrackConfig,
    "export": VerlExport,
    "plan train": PlanTrain,
    "plan variance": PlanVariance,
    "doctor": DoctorConfig,
}
GROUPS = {"train": {"task"}, "variance": {"task", "model"}, "evaluate": {"task", "model"}, "doctor": {"task"}} | {
    "plan train": {"task"},
    "plan variance": {"task", "model"},
}
GIVEN = {"model": {"name": "tiny"}, "task": {"name": "arithmetic"}}


def name_of(command: str) -> str:
    """`plan` of `plan train`."""
    return command.partition(" ")[0]


def numbers(kind: type, prefix: str = "") -> list[tuple[Key, Interval]]:
    """The keys that hold a number, or a list of them."""
    keys = [key for key in keys_of(kind, prefix) if {int, float} & {*bare(key.hint)}]
    found = [(key, interval(key.hint)) for key in keys]
    assert all(ends is not None for _, ends in found), f"no range: {[key.name for key, ends in found if ends is None]}"
    return [(key, ends) for key, ends in found if ends is not None]


def outside(key: Key, ends: Interval) -> Iterator[Any]:
    """Values just outside the range, of the key's own type, in a list where it is one."""
    step = 1 if int in bare(key.hint) else 1e-9
    for end, beyond, is_open in ((ends.low, -1, ends.open_low), (ends.high, 1, ends.open_high)):
        if abs(end) < float("inf"):
            value = end if is_open else end + beyond * max(step, abs(end) * 1e-12 * (step < 1))
            value = float(value) if step < 1 else value
            yield [value] * 2 if "list[" in str(key.hint) else value


def cases() -> Iterator[tuple[str, dict[str, Any], str, Any]]:
    """(command, groups that are chosen, dotted key, value outside)."""
    for command, schema in SCHEMAS.items():
        for key, ends in numbers(schema):
            for value in outside(key, ends):
                yield command, {}, key.name, value
        for name, (config, _) in TASKS.items():
            if "task" in GROUPS.get(command, ()):
                for key, ends in numbers(config, "task."):
                    for value in outside(key, ends):
                        yield command, {"task": {"name": name}}, key.name, value
    for name, entry in catalogue().items():
        for key, ends in numbers(entry.hyperparameters, "algo."):
            for value in outside(key, ends):
                yield "train", {"algo": {"name": name}}, key.name, value


@pytest.fixture(scope="module")
def defaults() -> dict[str, dict[str, Any]]:
    return {
        command: composed(name_of(command), [f"planned={command.split()[-1]}"] if " " in command else [])
        for command in SCHEMAS
    }


def test_every_number_is_refused_just_outside_its_range_by_every_command(defaults: dict[str, dict[str, Any]]) -> None:
    checked = 0
    for command, groups, key, value in cases():
        judge, values = load(COMMANDS[name_of(command)].judge), {**defaults[command], **groups}
        *path, last = key.split(".")
        node = values
        for name in path:
            node[name] = dict(node.get(name) or GIVEN.get(name, {}))
            node = node[name]
        node[last] = value
        shown = value[0] if isinstance(value, list) else value
        with pytest.raises(UserError) as caught:
            judge(values)
        assert str(caught.value).startswith((f"{key}={shown}: allowed is", f"{key}[0]={shown}: allowed is")), (
            caught.value
        )
        checked += 1
    assert checked > 300


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("report path=/nowhere", "path=/nowhere: no such folder"),
        ("train algo=opo algo.updates_per_rollout=2", "algo.updates_per_rollout=2: opo is exactly on-policy"),
        ("train optim.learning_rate=1e308", "optim.learning_rate=1e+308: allowed is at least 0 and at most 1"),
        ("evaluate rollout.temperature=0", "rollout.temperature=0: allowed is above 0"),
        ("variance estimators=[opoo]", "estimators has opoo: not one that weighs responses (did you mean opo?)"),
        ("plan train ranks=0", "ranks=0: allowed is at least 1"),
        ("plan variance ratio=1", "ratio=1.0: no number of prompts"),
        ("doctor device=foo", "device=foo: allowed is auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_refusal_loads_neither_torch_nor_transformers(
    command: str, said: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    code = (
        "import sys\nfrom opo.cli import run\nfrom opo.errors import UserError\n"
        f"try: run({command.split()!r})\nexcept UserError as error: print(error)\n"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    record_property("seconds", round(time.perf_counter() - start, 2))  # about 0.6 on one quiet core
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(said)
    assert list(tmp_path.iterdir()) == []


ODD = [
    "",
    "null",
    "0",
    "-1",
    "1",
    "3",
    "1e308",
    "-1e400",
    "nan",
    "inf",
    "true",
    "abc",
    "[]",
    "[1,2]",
    "[[1],{a:b}]",
    "{}",
    "{a: 1}",
    "'x y'",
    "1,2",
    "range(0,3)",
    "glob(*po)",
    "glob(*)",
    "choice(1,2)",
    "interval(0,1)",
    "${nope}",
    "${seed}",
    "${steps}",
    "'{question} {'",
    "../up",
    "/dev/null",
    "x" * 300,
    "9" * 30,
    "9" * 5000,
    "-0.0",
    "\x1b[31mred",
    "[/bold]",
    "ä",
    "\ud800",
    "a\nb",
    "opo",
    "grpo",
    "tiny",
    "smollm2",
    "vllm",
    "cuda:99",
    "'",
    '"',
    "(",
    "a=b",
    "\\",
    "?" * 3,
    "shuffle(1,2)",
    "extend_list(1)",
    "int(3)",
]


def fuzzed(rng: random.Random, keys: list[str]) -> str:
    """One override: a known key or an unknown one, with a value that may be anything."""
    key = rng.choice(
        [
            *keys,
            "algo",
            "task",
            "model",
            "rollout",
            "optim",
            "tracking",
            "hydra.run.dir",
            "hydra.mode",
            "sweep",
            "nope",
            "a.b.c",
            "x" * 5000,
            ".",
        ]
    )
    return f"{rng.choice(['', '', '', '', '+', '++', '~'])}{key}{rng.choice(['=', '=', '=', '=', '@', ''])}{rng.choice(ODD)}"


@pytest.mark.prove
def test_a_thousand_overrides_are_legal_or_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng, refused, longest = random.Random(0), 0, 0
    keys = {command: [key.name for key in keys_of(schema)] for command, schema in SCHEMAS.items()}
    for number in range(1000):
        command = rng.choice(list(SCHEMAS))
        overrides = [fuzzed(rng, keys[command]) for _ in range(rng.choice((1, 1, 2)))] + ["-m"] * (rng.random() < 0.2)
        try:
            name, *word = command.split()
            check(take_apart(name, [*word, *overrides])[0], load(COMMANDS[name].judge))
        except UserError as error:
            refused += 1
            longest = max(longest, len(str(error)))
        except Exception as error:
            raise AssertionError(
                f"{number}: opo {command} {[o[:60] for o in overrides]}: {type(error).__name__}: {error}"
            ) from error
        assert list(tmp_path.iterdir()) == [], overrides
    assert 500 < refused < 1000
    assert longest < 6000
