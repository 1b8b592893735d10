"""Plans: memory that is counted on paper equals what models keep, every experiment can be planned, bad input is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import SMALL
from small import small_gpt2, small_llama

from opo.cli import main
from opo.config.schema import ModelConfig
from opo.plan.kept import KeptPerRow
from opo.plan.shape import on_paper

CONF = Path(__file__).parents[3] / "conf"


def run(capfd: Any, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error of `opo ARGUMENTS`."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0), *capfd.readouterr()


def planned(capfd: Any, *arguments: str) -> dict[str, Any]:
    status, out, err = run(capfd, "plan", *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


@pytest.mark.parametrize("make", [small_llama, small_gpt2])
@pytest.mark.parametrize("by_response", [False, True])
def test_a_model_on_paper_keeps_what_the_model_itself_keeps(make: Any, by_response: bool, tmp_path: Path) -> None:
    model = make().float()
    model.save_pretrained(tmp_path)
    shapes = on_paper(ModelConfig("pretrained", str(tmp_path)))
    assert {n: p.shape for n, p in shapes.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert all(p.is_meta for p in shapes.parameters())
    assert KeptPerRow.of(shapes, by_response) == KeptPerRow.of(model, by_response)


def test_what_a_row_keeps_is_what_autograd_saves_for_it() -> None:
    """A slow twin: the memory that the graph of a longer pass holds, by the sizes of its distinct tensors."""
    model = small_llama()
    kept: dict[int, torch.UntypedStorage] = {}
    ids = torch.ones(2, 40, dtype=torch.int64)
    mask = ids.clone()
    mask[1, -1] = 0

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        model.base_model(input_ids=ids, attention_mask=mask, position_ids=position_ids, use_cache=False)
    own = {x.untyped_storage().data_ptr() for x in [*model.parameters(), *model.buffers()]}
    saved = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)
    assert KeptPerRow.of(model).bytes(40) == pytest.approx(saved / 2, rel=0.01)


@pytest.mark.parametrize("experiment", sorted(file.stem for file in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_is_planned_without_a_download(
    experiment: str, capfd: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPO_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = planned(capfd, "train", f"experiment={experiment}", "ranks=2", "device_gib=80", "teraflops=100")
    assert plan["peak_bytes"] > 4 * plan["parameters"] / 2
    assert plan["fits"] == (plan["peak_bytes"] <= 80 * 2**30)
    assert len(plan["conclusions"]) > 2
    assert list(tmp_path.iterdir()) == []


def test_the_paper_s_recipe_is_that_of_seven_billion_parameters(capfd: Any) -> None:
    plan = planned(capfd, "train", "experiment=opo_paper", "ranks=8", "device_gib=192", "teraflops=300")
    assert (plan["parameters"], plan["parallel"], plan["fits"]) == (7_615_616_512, "sharded", True)
    assert 86400 < plan["seconds"] < 10 * 86400


def test_what_cannot_be_planned_is_one_line(capfd: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for arguments, said in {
        ("train", f"model={tmp_path}"): "a bert model cannot be run on shapes alone",
        ("train", "model=/nowhere/at/all"): "model.path=/nowhere/at/all: no config.json",
        ("train", "ranks=64"): "rollout.num_prompts=16: 64 ranks need at least 64",
        ("train", "sampling_tokens_per_s=10.0"): "give both or neither",
        ("variance", "pilot=/nowhere"): "pilot=/nowhere: no variance study there",
        (
            "variance",
            "estimator=leave_one_out",
        ): "estimator=leave_one_out: must be one of the estimators besides the reference",
        ("sweep",): "planned=sweep: not one of train, variance",
    }.items():
        status, _, error = run(capfd, "plan", *arguments)
        assert (status, error.count("\n")) == (2, 1), error
        assert said in error


def test_a_training_is_timed_by_two_of_its_steps(capfd: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    plan = planned(capfd, "train", *SMALL, "measure=true", "steps=10", "evaluate.every=5", "evaluate.num_prompts=8")
    speed = plan["speed"]
    assert speed["source"].startswith("measured now")
    assert 0 < speed["mean_tokens"] <= plan["lengths"]["response"]
    step = 4 * 4 * speed["mean_tokens"] * (1 / speed["sampling"] + 1 / speed["update"])
    evaluation = 8 * 4 * speed["mean_tokens"] / speed["sampling"]
    assert plan["seconds"] == pytest.approx(10 * step + 2 * evaluation)
    assert list(tmp_path.iterdir()) == []


def test_given_speeds_are_divided_among_ranks(capfd: Any) -> None:
    given = ["sampling_tokens_per_s=100.0", "update_tokens_per_s=50.0", "response_tokens=10", "steps=2"]
    one, two = (planned(capfd, "train", *given, f"ranks={ranks}")["seconds"] for ranks in (1, 2))
    assert one == pytest.approx(2 * 16 * 8 * 10 * (1 / 100 + 1 / 50))
    assert two == pytest.approx(one / 2)


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [
        (["algo=opo"], 3),
        (["algo=grpo", "algo.updates_per_rollout=4", "algo.minibatches=4"], 3),  # each update is one micro-batch
        (["algo=grpo", "algo.updates_per_rollout=4", "algo.minibatches=4", "ranks=2"], 3 + 3 / 4),
        (["algo=grpo", "algo.updates_per_rollout=4", "optim.tokens_per_microbatch=512"], 4 * 3 + 3),
        (["algo=ppo"], 2 * 3 + 1 + 2 * 3),  # the critic's values, and its updates
        (["algo=ppo", "optim.tokens_per_microbatch=512"], 2 * 3 + 3 / 2 + 1 + 2 * 3),
    ],
)
def test_an_update_is_timed_by_its_passes(overrides: list[str], passes: float, capfd: Any) -> None:
    fixed = ["teraflops=1.0", "response_tokens=20", "kl_init_every=0"]
    speed = planned(capfd, "train", *fixed, *overrides)["speed"]
    assert speed["sampling"] / speed["update"] == pytest.approx(passes)


def test_sharding_cuts_weights_and_optimizer(capfd: Any) -> None:
    plans = [
        planned(capfd, "train", "ranks=4", "teraflops=1", f"parallel={mode}") for mode in ("replicated", "sharded")
    ]
    replicated, sharded = (plan["memory"]["update"]["parts"] for plan in plans)
    assert (sharded["weights"], sharded["optimizer"]) == (replicated["weights"] / 4, replicated["optimizer"] / 4)
    assert sharded["whole weights for sampling"] == replicated["weights"]


def test_a_pilot_says_how_many_prompts_a_difference_needs(capfd: Any) -> None:
    pilot = ["variance", f"pilot={CONF.parent}/notebooks/example/variance/result.json", "seconds_per_prompt=2.0"]
    near, far = (planned(capfd, *pilot, f"ratio={ratio}", "ranks=2", "policies=3") for ratio in (0.8, 0.5))
    assert 5 <= far["prompts_needed"] < near["prompts_needed"]
    assert near["seconds"] == 24 / 2 * 3 * 2.0
    (sentence,) = (line for line in near["conclusions"] if "tell a relative variance" in line)
    assert f"{near['prompts_needed']:,} prompts with 64 responses" in sentence
