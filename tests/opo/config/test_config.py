"""Every file in conf/, every rule, and the way from dicts to typed configs."""

import copy
import json
import math
import re
import shlex
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from run_folders import fake_policy

from analysis.study.config import VarianceConfig
from analysis.study.config import load_config as load_study
from opo.algorithms import ALGORITHMS
from opo.cli import take_apart
from opo.cli.compose import composed as composed_of
from opo.cli.launch import check
from opo.config.load import load_config
from opo.config.plan import load_config as load_plan
from opo.config.read import read
from opo.config.rules import RULES
from opo.config.schema import AlgoConfig, ModelConfig, RolloutConfig, RunConfig, TrackingConfig, to_dict
from opo.errors import UserError
from opo.tasks import TASKS

CONF = Path(__file__).parents[3] / "conf"
GROUPS = ("algo", "task", "model", "rollout", "optim", "tracking", "parallel", "experiment", "debug")
CHOICES = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
WITH_COMMAND = sorted(file for group in ("experiment", "sweep", "debug") for file in (CONF / group).glob("*.yaml"))


def composed(*overrides: str) -> dict[str, Any]:
    return composed_of("train", overrides)


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    return composed()


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with dotted keys set; a key's group is made where it is missing."""
    values = copy.deepcopy(values)
    for key, value in changes.items():
        *groups, last = key.split(".")
        node = values
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return values


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda part: part)
def test_every_choice_composes_and_is_accepted(group: str, choice: str, tmp_path: Path) -> None:
    needs: dict[tuple[str, str], list[str]] = {
        ("model", "pretrained"): [f"model.path={tmp_path}"],
        ("task", "math"): [f"task.path={tmp_path}/questions.jsonl", "model=pretrained", f"model.path={tmp_path}"],
        ("task", "file"): [
            *(f"task.path={tmp_path}/questions.jsonl", "reward.function=own_task:plain"),
            *("model=pretrained", f"model.path={tmp_path}"),
        ],
        ("experiment", "opo_paper"): [f"model.path={tmp_path}", f"task.path={tmp_path}/questions.jsonl"],
        ("task", "reasoning_gym"): ["model=pretrained", f"model.path={tmp_path}"],
        **{
            ("task", name): ["model=pretrained", f"model.path={tmp_path}"]
            for name in ("chain_sum", "worked_sums", "products", "letter_counting")
        },
    }
    fake_policy(tmp_path)
    rows = [f'{{"question": "What is {n} + {n}?", "answer": "{2 * n}"}}' for n in range(40)]
    (tmp_path / "questions.jsonl").write_text("\n".join(rows))
    if (group, choice) == ("rollout", "vllm") and find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    config = load_config(composed(f"{group}={choice}", *needs.get((group, choice), [])))
    if group == "algo":
        assert config.algo.name == choice or choice not in ALGORITHMS  # a preset of parts around another algorithm
        assert set(config.algo.hyperparameters) == set(ALGORITHMS[config.algo.name].parameters)


def test_every_algorithm_and_task_has_its_file() -> None:
    assert set(ALGORITHMS) <= {choice for group, choice in CHOICES if group == "algo"}
    assert set(TASKS) <= {choice for group, choice in CHOICES if group == "task"}


@pytest.mark.parametrize("file", WITH_COMMAND, ids=lambda file: file.stem)
def test_the_command_in_a_file_is_accepted(file: Path) -> None:
    comments = "\n".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    found = re.search(r"opo (train|plan train|variance) (.+)", comments)
    assert found, f"{file} does not say which command runs it"
    assert f"{file.parent.name}={file.stem}" in found.group(2)
    if found.group(1) == "plan train":  # its model or its data have to be fetched first
        check(take_apart("plan", ["train", *shlex.split(found.group(2))])[0], load_plan)
        return
    if found.group(1) == "variance":
        studies: list[VarianceConfig] = []
        check(take_apart("variance", shlex.split(found.group(2)))[0], lambda values: studies.append(load_study(values)))
        assert len(studies) == 3
        return
    configs = jobs_of(found.group(2))
    axes = yaml.safe_load(file.read_text()).get("hydra", {}).get("sweeper", {}).get("params", {})
    if axes:  # a sweep: every combination once, one thread per job
        assert len({json.dumps(to_dict(config), sort_keys=True) for config in configs}) == len(configs)
        given = {override.partition("=")[0] for override in shlex.split(found.group(2))}
        listed = [values for axis, values in axes.items() if axis not in given]
        if "glob(" not in "".join(listed):
            assert len(configs) == math.prod(len(values.split(",")) for values in listed)
        assert len(configs) > 1
        assert {config.threads for config in configs} == {1}
    assert configs


def jobs_of(command: str) -> list[RunConfig]:
    """The accepted configs of every job of `opo train COMMAND`."""
    configs: list[RunConfig] = []
    check(take_apart("train", shlex.split(command))[0], lambda values: configs.append(load_config(values)))
    return configs


def test_the_command_line_replaces_an_axis_of_a_sweep_file() -> None:
    invocation, _ = take_apart("train", ["sweep=algorithms", "seed=7", "algo=opo,grpo"])
    seen: list[tuple[str, int]] = []
    added = check(invocation, lambda values: seen.append((values["algo"]["name"], values["seed"])))
    assert seen == [("opo", 7), ("grpo", 7)]
    assert sorted(x for x in added if x[0] == "~") == ["~hydra.sweeper.params.algo", "~hydra.sweeper.params.seed"]


def test_every_key_can_be_overridden_without_a_plus(default: dict[str, Any]) -> None:
    tiny, pretrained = default["model"], composed("model=pretrained", "model.path=x")["model"]
    vllm = composed("rollout=vllm")["rollout"]
    assert set(default) == {field.name for field in fields(RunConfig)}
    assert set(tiny) == {field.name for field in fields(ModelConfig)} == set(pretrained) | {"tiny"}
    assert set(default["rollout"]) | set(vllm) == {field.name for field in fields(RolloutConfig)}
    assert set(default["tracking"]) == {field.name for field in fields(TrackingConfig)}
    assert set(default["algo"]) == {field.name for field in fields(AlgoConfig)} - {"hyperparameters"}
    for group in ("optim", "critic", "reward", "evaluate", "checkpoint", "certificate"):
        assert set(default[group]) == {field.name for field in fields(get_type_hints(RunConfig)[group])}


def test_the_files_that_repeat_defaults_repeat_them_right(default: dict[str, Any]) -> None:
    config = load_config(default)
    for group, kind in get_type_hints(RunConfig).items():
        if group in ("critic", "reward", "checkpoint", "certificate"):
            assert getattr(config, group) == kind()


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_a_written_config_replays(algo: str) -> None:
    config = load_config(composed(f"algo={algo}", "seed=3"))
    written = yaml.safe_load(yaml.safe_dump(to_dict(config)))
    assert load_config(written) == config


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    (
        "penalty_has_a_limit",
        {"algo": {"name": "dapo", "overlong_buffer": 9}},
        "algo.token_limit=null: the penalty over",
    ),
    ("exactly_on_policy", {"algo.updates_per_rollout": 2}, "algo.updates_per_rollout=2: opo is exactly on-policy"),
    (
        "one_gradient_a_batch",
        {"algo": {"name": "grpo", "updates_per_rollout": 2, "gradient": "look_ahead"}},
        "algo.updates_per_rollout=2: algo.gradient=look_ahead takes one update",
    ),
    ("untruncated", {"rollout.top_p": 0.9}, "rollout.top_p=0.9: opo is exactly on-policy"),
    ("untruncated", {"rollout.top_k": 50}, "rollout.top_k=50: opo is exactly on-policy"),
    ("untruncated", {"rollout.top_k": 5, "algo": {"name": "grpo"}}, "is 0, or certificate.on_breach=correct"),
    (
        "whole_minibatches",
        {"algo": {"name": "grpo", "updates_per_rollout": 3, "minibatches": 3}},
        "algo.minibatches=3: must divide rollout.num_prompts=16",
    ),
    (
        "whole_minibatches",
        {"algo": {"name": "grpo", "updates_per_rollout": 3, "minibatches": 2}},
        "algo.updates_per_rollout=3: must be a multiple of algo.minibatches=2",
    ),
    ("bearable_batch", {"rollout.group_size": 1}, "rollout.group_size=1: opo compares the responses of a group"),
    ("bearable_batch", {"rollout.num_prompts": 1, "algo": {"name": "copo"}}, "rollout.num_prompts=1: copo needs"),
    (
        "kl_reward_counts",
        {"algo": {"name": "nft", "kl_coef": 0.1, "kl_placement": "reward"}},
        "algo.kl_placement=reward: nft takes no KL reward; allowed is loss",
    ),
    ("warm_up_ends", {"steps": 5, "optim.warmup_steps": 6}, "optim.warmup_steps=6: allowed is at most 5"),
    ("tiny_shape", {"model.tiny.heads": 8}, "model.tiny.heads=8: must divide model.tiny.hidden_size=128"),
    ("tiny_alphabet", {"task": {"name": "reasoning_gym"}}, "task=reasoning_gym: the built-in policy"),
    ("study_is_a_folder", {"study": "../up"}, "study=../up: allowed are"),
    ("usable_device", {"device": "cuda:99"}, "device=cuda:99: "),
    ("usable_engine", {"rollout.engine": "vllm", "model.dtype": "float64"}, "rollout.engine=vllm"),
    *(
        (
            "kl_reward_counts",
            {"algo": {"name": name, "kl_coef": 0.1, "kl_placement": "reward"}},
            f"algo.kl_placement=reward: {name} takes no KL reward; allowed is loss",
        )
        for name in ("nft", "inpo", "trpa", "max_rl")
    ),
    (
        "rounded_from_float32",
        {"model.dtype": "float64", "model.compute": "bfloat16_backward"},
        "model.compute=bfloat16_backward: allowed with model.dtype=float64 is float32",
    ),
    ("adapters_have_a_rank", {"model.lora_targets": ["q_proj"]}, "model.lora_rank=0: model.lora_targets names modules"),
    (
        "liger_is_bfloat16",
        {"model.head_kernel": "liger", "model.compute": "bfloat16_backward"},
        "model.head_kernel=liger: it multiplies in bfloat16; allowed with model.dtype=float32 and model.compute=bfloat16_backward is tiled",
    ),
    (
        "usable_task",
        {"model": {"name": "smollm2"}, "task": {"name": "math", "path": "/nowhere.jsonl"}},
        "task.path=/nowhere.jsonl",
    ),
    (
        "reachable_model",
        {"model": {"name": "pretrained"}},
        "model.path=null: with model=pretrained allowed is a folder",
    ),
    ("reachable_model", {"model.path": "x"}, "model.path=x: with model=tiny allowed is null"),
    ("reachable_model", {"model": {"name": "pretrained", "path": "/nowhere"}}, "model.path=/nowhere: no such folder"),
    ("reachable_model", {"model": {"name": "pretrained", "path": str(CONF)}}, "has no config.json"),
]


@pytest.mark.parametrize(
    ("rule", "changes", "message"), BROKEN, ids=[f"{rule}-{i}" for i, (rule, *_) in enumerate(BROKEN)]
)
def test_a_broken_rule_is_named_in_one_line(
    rule: str, changes: dict[str, Any], message: str, default: dict[str, Any]
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(changed(default, changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_rule_is_broken_once() -> None:
    ranks = {"enough_for_the_ranks"}  # by torchrun's environment: tests/opo/parallel
    assert {rule.__name__ for rule in RULES} - ranks == {rule for rule, *_ in BROKEN}
    assert all(rule.__doc__ for rule in RULES)


@pytest.mark.parametrize("algo", ["reinforce", "remax", "ppo", "reinforce_pp"])
def test_a_group_of_one_is_enough_without_a_group_baseline(algo: str) -> None:
    assert load_config(composed(f"algo={algo}", "rollout.group_size=1")).rollout.group_size == 1


@pytest.mark.parametrize("algo", ["opo", "grpo", "rloo", "group_mean", "dr_grpo", "gspo", "copg", "lipo"])
def test_a_group_of_one_teaches_nothing_to_what_compares_a_group(algo: str) -> None:
    with pytest.raises(UserError, match=r"rollout\.group_size=1: .* at least 2"):
        load_config(composed(f"algo={algo}", "rollout.group_size=1"))


def test_truncated_sampling_is_the_choice_of_an_algorithm_with_a_ratio() -> None:
    corrected = composed("algo=grpo", "rollout.top_p=0.9", "certificate.on_breach=correct")
    assert load_config(corrected).rollout.top_p == 0.9


def test_a_learning_rate_of_zero_is_the_self_test(default: dict[str, Any]) -> None:
    assert load_config(changed(default, {"optim.learning_rate": 0})).optim.learning_rate == 0.0


def test_a_checkpoint_is_pointed_to_its_policy(default: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=re.escape(f"its model is model={tmp_path}/policy")):
        load_config(changed(default, {"model": {"name": "pretrained", "path": str(tmp_path)}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0: allowed is at least 1"),
        ({"steps": 2**40}, "steps=1099511627776: allowed is at least 1 and at most 2147483647"),
        ({"optim.beta1": 1.0}, "optim.beta1=1.0: allowed is at least 0 and below 1"),
        ({"optim.learning_rate": 1e308}, "optim.learning_rate=1e+308: allowed is at least 0 and at most 1"),
        ({"rollout.temperature": 0.0}, "rollout.temperature=0.0: allowed is above 0"),
        ({"rollout.top_p": 1.5}, "rollout.top_p=1.5: allowed is above 0 and at most 1"),
        ({"rollout.devices": [0, -1]}, "rollout.devices[1]=-1: allowed is at least 0"),
        ({"algo": {"name": "grpo", "clip_low": 1.5}}, "algo.clip_low=1.5: allowed is at least 0 and at most 1"),
        ({"algo": {"name": "grpo", "std_eps": -1e-6}}, "algo.std_eps=-1e-06: allowed is at least 0"),
        ({"device": "tpu"}, "device=tpu: allowed is auto, cpu, cuda or cuda:N"),
        ({"study": "x" * 300}, f"study={'x' * 200}...: allowed are at most 200 bytes"),
        ({"stepz": 1}, "stepz: unknown key (did you mean steps?)"),
        ({"optim.learning_rat": 1}, "optim.learning_rat: unknown key (did you mean learning_rate?)"),
        ({"algo.clip_hihg": 1}, "algo.clip_hihg: unknown key; allowed are entropy_coef"),
        ({"algo": {"name": "grpo", "clip_hihg": 1}}, "algo.clip_hihg: unknown key (did you mean clip_high?)"),
        ({"algo": {"name": "opoo"}}, "algo=opoo: not one of"),
        ({"task": None}, "task=null: not one of arithmetic"),
        ({"rollout": 3}, "rollout=3: a group of keys is needed"),
        ({"steps": True}, "steps=True: a whole number is needed"),
        ({"steps": 1.0}, "steps=1.0: a whole number is needed"),
        ({"steps": "10"}, "steps=10: a whole number is needed"),
        ({"optim.learning_rate": "1e-3"}, "optim.learning_rate=1e-3: a number is needed"),
        ({"optim.learning_rate": float("nan")}, "optim.learning_rate=nan: a finite number is needed"),
        ({"algo": {"name": "grpo", "clip_high": float("inf")}}, "algo.clip_high=inf: a finite number is needed"),
        ({"algo": {"name": "grpo", "aggregation": "mean"}}, "algo.aggregation=mean: not one of sequence_sum"),
        (
            {"task": {"name": "reasoning_gym", "options": {"a": [1.0, float("nan")]}}},
            "task.options.a[1]=nan: a finite number is needed",
        ),
        ({"model.lora_targets": 3}, "model.lora_targets=3: text is needed"),
    ],
)
def test_types_are_checked_to_the_leaf(changes: dict[str, Any], message: str, default: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(changed(default, changes))
    assert str(caught.value).startswith(message)


def test_a_missing_group_is_named() -> None:
    with pytest.raises(UserError, match="algo: missing, and it has no default"):
        read(RunConfig, {})


def test_a_whole_number_is_a_number_and_instances_stay_as_they_are() -> None:
    model = ModelConfig("pretrained", "x", lora_targets=["a", "b"])
    config = read(RunConfig, changed(composed(), {"optim.learning_rate": 0}) | {"model": model, "algo": AlgoConfig()})
    assert config.model is model
    assert isinstance(config.optim.learning_rate, float)
