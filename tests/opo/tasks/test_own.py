"""A task and a reward of the user's own, by name, in the workers that score everything."""

import json
import re
import sys
from zlib import crc32

import polars as pl
import pytest

from opo.cli.compose import composed
from opo.config.load import load_config, task_config
from opo.config.schema import OwnReward
from opo.errors import UserError
from opo.rewards.runner import RewardRunner
from opo.tasks import make_task
from opo.tasks.file import FileConfig
from opo.tasks.own import config_kind, defaults_of, load_object
from opo.train.loop import train

BROKEN = """
from __future__ import annotations
from dataclasses import dataclass, field
import numpy as np
from opo.tasks.base import Prompt

@dataclass
class Options:
    array: np.ndarray = field(default_factory=lambda: np.zeros(2))

class Own:
    fault, late = None, Prompt(6, "1+1=", "2")
    {body}
    def prompt(self, index, split="train"):
        if index == 6 and self.fault:
            raise self.fault
        return self.late if index == 6 else Prompt(index, "1+1=", "2")
    def score(self, prompt, response):
        return 0.0
"""


@pytest.fixture
def sums(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{a}+{b}=", "target": a + b, "ground_truth": str(a + b)} for a in range(6) for b in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileConfig(path=str(path))


@pytest.fixture
def users(tmp_path, monkeypatch):
    """Writes a module of the user's."""
    monkeypatch.syspath_prepend(tmp_path)
    load_object.cache_clear()
    config_kind.cache_clear()

    def write(name, text):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)

    return write


def test_a_task_of_ones_own_has_its_options_as_keys():
    assert defaults_of("own_task:Count") == {"name": "own_task:Count", "seed": 0, "largest": 9}
    task = make_task(task_config({"name": "own_task:Count", "largest": 5}))
    with RewardRunner(task) as runner:
        assert runner.score([task.prompt(6)], [["2", "3", ""]]).rewards_PG.tolist() == [[1.0, 0.0, 0.0]]
    assert (task.name, task.stop, task.extract(" 2 ")) == ("own_task:Count", (), "2")


@pytest.mark.parametrize("name", ["plain", "trl", "trl_async", "verl", "verl_batched"])
def test_rewards_under_the_signatures_of_others(sums, name):
    task = make_task(sums, {f"own_task:{name}": 1.0})
    prompts = [task.prompt(i) for i in range(3)]
    right = [str(prompt.metadata["target"]) for prompt in prompts]
    with RewardRunner(task) as runner:
        scored = runner.score(prompts, [[answer, "x"] for answer in right])
    assert not scored.reasons
    assert scored.rewards_PG.tolist() == [[1.0, 0.0]] * 3


@pytest.mark.parametrize(
    ("values", "function", "says"),
    [
        ({"name": "own_task:Cuont"}, None, r"task=own_task:Cuont: .* has no Cuont \(did you mean Count\?\)"),
        ({"name": "no_such_module:X"}, None, "task=no_such_module:X: no module no_such_module"),
        ({"name": "own_task:Count", "largst": 1}, None, r"task.largst: unknown key \(did you mean largest\?\)"),
        ({"name": "own_task:Count", "largest": "a"}, None, "task.largest=a: a whole number is needed"),
        ({"name": "own_task:Scoreless"}, None, "task=own_task:Scoreless: the class has no method score"),
        ({"name": "own_task:plain"}, None, "task=own_task:plain: a class is needed"),
        ({"name": "arithmetic"}, "own_task:alone", r"reward.function=own_task:alone: takes \(response\); allowed are"),
        ({"name": "arithmetic"}, "own_task:wants_more", "wants nowhere, which the prompts do not bring; their columns are answer"),
        ({"name": "arithmetic"}, "score.py", "reward.function=score.py: must read module:name"),
        ({"name": "sums"}, None, "task=sums: not one of arithmetic"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line(values, function, says):
    with pytest.raises(UserError, match=says) as caught:
        make_task(task_config(values), None if function is None else {function: 1.0})
    assert "\n" not in str(caught.value)


def test_several_functions_are_summed_with_their_weights_and_a_lost_part_loses_the_reward(sums):
    weights = {"own_task:plain": 1.0, "own_task:brief": 0.25, "own_task:trl": -0.5}
    task = make_task(sums, weights)
    assert task.parts == ("plain", "brief", "trl")  # type: ignore[attr-defined]
    prompt = task.prompt(7)
    right = str(prompt.metadata["target"])
    with RewardRunner(task) as runner:
        scored = runner.score([prompt], [[right, "nonsense", "", right]])
    assert scored.rewards_PG.nan_to_num(-9.0).tolist() == [[0.75, 0.0, -9.0, 0.75]]
    assert scored.parts_PGK[0, :2].tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    assert scored.parts_PGK[0, 2].isnan().all()
    assert scored.reasons == {(0, 2): "not a number: NoneType"}
    assert make_task(sums, {"own_task:plain": 2.0}).score(prompt, right) == 2.0


@pytest.mark.parametrize(
    ("row", "truth"),
    [
        ({"answer": 2}, 2),
        ({"answer": 0}, 0),
        ({"answer": ["a", "b"]}, ["a", "b"]),
        ({"answer": 2, "ground_truth": 3}, 3),
        ({"answer": None, "solution": 4.5}, 4.5),
        ({"answer": "2", "reward_model": {"ground_truth": 5}}, 5),
        ({"answer": "2", "reward_model": {"style": "rule"}}, "2"),
        ({}, ""),
    ],
)
def test_the_ground_truth_of_verl_is_the_value_of_its_column(tmp_path, users, row, truth):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"{i}=", **row}) + "\n" for i in range(20)))
    users("truth_rewards", f"def is_it(solution_str, ground_truth):\n    return float(ground_truth == {truth!r})")
    task = make_task(FileConfig(path=str(tmp_path / "rows.jsonl")), {"truth_rewards:is_it": 1.0})
    assert task.score(task.prompt(0), "") == 1.0


def test_a_decimal_is_a_reward(users):
    users("decimal_reward", "from decimal import Decimal\ndef half(prompt, response): return Decimal('0.5')")
    task = make_task(task_config({"name": "own_task:Count"}), {"decimal_reward:half": 3.0})
    with RewardRunner(task) as runner:
        assert runner.score([task.prompt(0)], [["1"]]).rewards_PG.tolist() == [[1.5]]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("stop = ('',)", r"its stop is \(''.*; needs texts that are not empty"),
        ("stop = 'ab'", "its stop is ab; needs texts"),
        ("stop = None", "its stop is None; needs texts"),
        ("stop = (1,)", r"its stop is \(1,\); needs texts"),
        ("name = ''", "its name is .*; needs texts"),
        ("warnings = 3", "its warnings is 3; needs texts"),
        ("def __init__(self): raise GeneratorExit('z')", "GeneratorExit: z"),
    ],
)
def test_what_a_task_may_leave_out_is_refused_where_it_is_odd(users, body, said):
    name = f"odd_task_{crc32(body.encode())}"
    users(name, f"from own_task import Count\nclass Odd(Count):\n    {body}\n")
    with pytest.raises(UserError, match=said):
        make_task(task_config({"name": f"{name}:Odd"}))


def test_a_prompt_that_differs_when_it_is_asked_again_is_refused(users):
    users(
        "drawn_task",
        "import itertools\nfrom own_task import Count\nfrom opo.tasks import Prompt\nasked = itertools.count()\n"
        "class Drawn(Count):\n    def prompt(self, index, split='train'): return Prompt(index, f'{next(asked)}+1=', '2')\n",
    )
    with pytest.raises(UserError, match=r"prompt\(0\) gave two different prompts"):
        make_task(task_config({"name": "drawn_task:Drawn"}))


@pytest.mark.parametrize(("vote", "said"), [("1 / 0", "extract raised ZeroDivisionError"), ("[1]", "a text or None")])
def test_a_vote_that_is_none_is_refused(users, vote, said):
    name = f"votes_{len(vote)}"
    users(name, f"from own_task import Count\nclass V(Count):\n    def extract(self, response): return {vote}\n")
    with pytest.raises(UserError, match=said):
        make_task(task_config({"name": f"{name}:V"})).extract("1")


@pytest.mark.parametrize("default", ["1 / 0", "{1}"])
def test_a_default_that_no_config_holds_is_refused(users, default):
    name = f"defaults_{len(default)}"
    users(
        name,
        "from dataclasses import dataclass, field\nfrom own_task import Count\n@dataclass\nclass Options:\n"
        f"    odd: list = field(default_factory=lambda: {default})\n"
        "class Odd(Count):\n    def __init__(self, options: Options): pass\n",
    )
    with pytest.raises(UserError, match="the default of option odd is none: "):
        defaults_of(f"{name}:Odd")


def test_a_task_s_own_score_may_be_a_decimal(users):
    users(
        "decimal_task",
        "from decimal import Decimal\nfrom own_task import Count\n"
        "class Half(Count):\n    def score(self, prompt, response): return Decimal('0.5')",
    )
    task = make_task(task_config({"name": "decimal_task:Half"}))
    with RewardRunner(task) as runner:
        assert runner.score([task.prompt(0)], [["1"]]).rewards_PG.tolist() == [[0.5]]


def test_what_a_reward_changes_in_a_prompt_is_lost(users):
    body = "    found = prompt.metadata.setdefault('seen', [])\n    found.append(1)\n    return len(found)\n"
    users("greedy_rewards", f"def once(prompt, response):\n{body}def twice(prompt, response):\n{body}")
    task = make_task(task_config({"name": "own_task:Count"}), {"greedy_rewards:once": 1.0, "greedy_rewards:twice": 1.0})
    with RewardRunner(task) as runner:
        assert runner.score([task.prompt(0)], [["1", "2"]]).rewards_PG.tolist() == [[2.0, 2.0]]


def test_an_integer_beyond_float64_and_a_broken_exception_leave_responses_unscored(users):
    users(
        "odd_rewards",
        "class Odd(Exception):\n    def __str__(self): raise ValueError\n"
        "def score(prompt, response):\n    if response: raise Odd\n    return 10**400\n",
    )
    task = make_task(task_config({"name": "own_task:Count"}), {"odd_rewards:score": 1.0})
    with RewardRunner(task) as runner:
        found = runner.score([task.prompt(0)], [["", "1"]])
    assert found.reasons == {(0, 0): "not finite: inf", (0, 1): "exception: Odd:"}


@pytest.mark.parametrize(
    "names", ["response, answer", "completion, ground_truth", "response, prompt", "prompt, gold", "*, prompt, response"]
)
def test_two_arguments_of_other_names_are_refused(users, names):
    users("named_rewards", f"def score({names}): return 0.0")
    with pytest.raises(UserError, match=rf"takes \({re.escape(names)}\); allowed are \(prompt, response\), TRL's"):
        make_task(task_config({"name": "own_task:Count"}), {"named_rewards:score": 1.0})


def test_a_function_without_a_signature_is_refused_in_one_line():
    with pytest.raises(
        UserError, match=r"^reward.function=builtins:max: its arguments cannot be read .*; allowed are \(prompt"
    ):
        make_task(task_config({"name": "own_task:Count"}), {"builtins:max": 1.0})


def test_a_module_that_does_not_say_what_it_has_is_refused(users):
    users("asks_back", "def __getattr__(name): raise ValueError('no')")
    with pytest.raises(UserError, match=r"^reward.function=asks_back:f: asking asks_back for f raised ValueError: no "):
        make_task(task_config({"name": "own_task:Count"}), {"asks_back:f": 1.0})


def test_a_module_that_exits_is_refused_and_does_not_end_the_process(users):
    users("exits_at_once", "import sys\ndef score(prompt, response): return 1.0\nsys.exit(0)")
    with pytest.raises(
        UserError, match=r"reward.function=exits_at_once:score: importing exits_at_once raised SystemExit: 0 \("
    ):
        make_task(task_config({"name": "own_task:Count"}), {"exits_at_once:score": 1.0})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def __init__(self): raise SystemExit(0)", "SystemExit: 0"),
        ("def __init__(self, o: Nowhere): pass", r"the annotations of Own.__init__ cannot be read \(NameError: name 'Nowhere'"),
        ("def __init__(self, o: Options): pass", "option array is of the type ndarray, which a config cannot hold"),
        ("fault = IndexError('only six')", r"prompt\(6, 'train'\) raised IndexError: only six"),
        ("fault = SystemExit(3)", r"prompt\(6, 'train'\) raised SystemExit: 3"),
        ("late = None", r"prompt\(6, 'train'\) must return an opo.tasks.Prompt with index 6 and a text"),
        ("late = Prompt(5, '1+1=', '2')", r"prompt\(6, 'train'\) must return an opo.tasks.Prompt with index 6 and a text"),
        ("late = Prompt(6, '', '2')", "prompt 6 of the train stream is empty"),
        ("def __init__(self): self.f = lambda: 0", r"the task cannot be sent to the reward workers"),
        ("def __init__(self): self.f = open('/dev/null')", r"the task cannot be sent to the reward workers"),
        ("late = Prompt(6, '1+1=', '2', {'f': lambda: 0})", "prompt 6 cannot be sent to the reward workers"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_used_is_one_line(users, body, says):
    users("broken_task", BROKEN.format(body=body))
    with pytest.raises(UserError, match=says) as caught:  # noqa: PT012
        task = make_task(task_config({"name": "broken_task:Own"}))
        prompts = [task.prompt(index) for index in range(7)]
        with RewardRunner(task) as runner:
            runner.score(prompts, [["2"]] * 7)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "weights", "says"),
    [
        (["own_task:plain", "own_task:trl"], [1.0], "reward.weights has 1 numbers for 2 functions"),
        (["own_task:plain", "own_task:plain"], None, "a list of different ones"),
        ([], None, "a list of different ones"),
        (None, [1.0], "reward.weights: weighs the functions of"),
    ],
)
def test_functions_and_weights_agree(function, weights, says):
    with pytest.raises(UserError, match=says):
        _ = OwnReward(function, weights).functions


def test_a_run_logs_every_part_by_its_name(tmp_path):
    """Mean of each part in the metrics, each response's in its table; the weighted sum is the reward."""
    overrides = ["debug=tiny_steps", "tracking=off", "task=arithmetic", "steps=1", f"hydra.run.dir={tmp_path}/run"]
    overrides += ["reward.function=[own_task:plain_answer,own_task:brief]", "reward.weights=[1.0,0.5]"]
    config = composed("train", overrides)
    train(load_config(config), tmp_path / "run")
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    responses = pl.read_parquet(tmp_path / "run" / "rollouts")
    parts = [json.loads(text) for text in responses["reward_parts"].drop_nulls()]
    assert parts
    assert row["reward/brief_mean"] == pytest.approx(sum(p["brief"] for p in parts) / len(parts))
    total = [p["plain_answer"] + 0.5 * p["brief"] for p in parts]
    assert responses["reward"].drop_nulls().to_list() == pytest.approx(total)
    assert row["train/reward_mean"] == pytest.approx(row["reward/plain_answer_mean"] + 0.5 * row["reward/brief_mean"])


def test_messages_need_a_model_with_a_chat_template(tmp_path):
    path = tmp_path / "messages.jsonl"
    path.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": f"{n}+1="}]}) + "\n" for n in range(99)))
    with pytest.raises(UserError, match=r"need task.template=auto or chat and a model with a chat template"):
        make_task(FileConfig(path=str(path), template="plain"), {"own_task:plain": 1.0})
    asked = ["task=file", f"task.path={path}", "reward.function=own_task:plain"]
    with pytest.raises(UserError, match="its prompts are messages, so choose a model that has one"):
        load_config(composed("train", asked))


def test_a_file_has_no_reward_of_its_own(sums):
    with pytest.raises(UserError, match="task=file: has no reward of its own"):
        make_task(sums)
