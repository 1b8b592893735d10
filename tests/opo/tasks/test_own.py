"""A task and a reward of the user's own, by name, in the workers that score everything."""

import json

import polars as pl
import pytest

from opo.cli.compose import composed
from opo.config.load import load_config, task_config
from opo.config.schema import OwnReward
from opo.errors import UserError
from opo.rewards.runner import RewardRunner
from opo.tasks import make_task
from opo.tasks.file import FileConfig
from opo.tasks.own import defaults_of
from opo.train.loop import train


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


def test_a_file_has_no_reward_of_its_own(sums):
    with pytest.raises(UserError, match="task=file: has no reward of its own"):
        make_task(sums)
