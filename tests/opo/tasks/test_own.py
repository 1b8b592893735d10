"""A task and a reward of the user's own, by name, in the workers that score everything."""

import json

import pytest

from opo.config.load import task_config
from opo.errors import UserError
from opo.rewards.runner import RewardRunner
from opo.tasks import make_task
from opo.tasks.file import FileConfig
from opo.tasks.own import defaults_of


@pytest.fixture
def sums(tmp_path):
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{a}+{b}=", "target": a + b, "ground_truth": str(a + b)} for a in range(6) for b in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileConfig(path=str(path))


def test_a_task_of_ones_own_has_its_options_as_keys():
    assert defaults_of("own_task:Count") == {"name": "own_task:Count", "seed": 0, "largest": 9}
    task = make_task(task_config({"name": "own_task:Count", "largest": 5}))
    with RewardRunner(task) as runner:
        assert runner.score([task.prompt(6)], [["2", "3", ""]]).rewards_PG.tolist() == [[1.0, 0.0, 0.0]]
    assert (task.name, task.stop, task.extract(" 2 ")) == ("own_task:Count", (), "2")


@pytest.mark.parametrize("name", ["plain", "trl", "trl_async", "verl", "verl_batched"])
def test_rewards_under_the_signatures_of_others(sums, name):
    task = make_task(sums, f"own_task:{name}")
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
        make_task(task_config(values), function)
    assert "\n" not in str(caught.value)


def test_a_file_has_no_reward_of_its_own(sums):
    with pytest.raises(UserError, match="task=file: has no reward of its own"):
        make_task(sums)
