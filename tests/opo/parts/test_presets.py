"""Every part and preset trains, and a run that was left goes on as if nothing had happened."""

import json
from pathlib import Path

import pytest
from run_folders import SMALL, rows
from safetensors.torch import load_file

from opo.cli.compose import composed
from opo.config.load import load_config
from opo.config.parts import OPTIONS
from opo.errors import UserError
from opo.parts.chosen import BY_OPTIONS
from opo.train.loop import train

PRESETS = ["capo", "epo", "harpg", "n_pg_igt", "pcl", "pf_ppo", "ppo_max", "props", "tulu3_rlvr"]
PRESETS += ["t_ppo", "pit", "igpo", "guide_grpo", "rlgf"]
QUIET = ["tracking=off", "reward.workers=1", "kl_init_every=0"]


def run(folder: Path, steps: int, *overrides: str) -> None:
    values = composed("train", [*SMALL, *QUIET, f"steps={steps}", *overrides])
    train(load_config(values), folder)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train_and_resume_bit_by_bit(name, tmp_path):
    run(tmp_path / "whole", 3, f"algo={name}", "checkpoint.every=1")
    run(tmp_path / "parts", 2, f"algo={name}", "checkpoint.every=1")
    run(tmp_path / "parts", 3, f"algo={name}", "checkpoint.every=1")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    ends = [
        load_file(tmp_path / kind / "checkpoints/step-000003/policy/model.safetensors") for kind in ("whole", "parts")
    ]
    assert all(bool((ends[0][key] == ends[1][key]).all()) for key in ends[0])


def test_parts_compose_with_any_loss(tmp_path):
    run(
        tmp_path / "run",
        2,
        "algo=opo",
        "algo.filter={name: power, exponent: 1.0}",
        "algo.regulariser={name: entropy_band, coef: 0.01}",
        "algo.shaper=running_moments",
        "algo.sampler=prompt_curriculum",
        "algo.gradient=look_ahead",
        "optim=sgd",
        "optim.learning_rate=0.01",
    )
    assert len(rows(tmp_path / "run")) == 2


def test_a_behaviour_policy_is_not_certified_on_policy(tmp_path):
    run(tmp_path / "run", 1, "algo=props")
    record = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert not record["exactly_on_policy"]
    assert not record["sampled_on_policy"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "algo.filter=bets",
            "algo.filter=bets: not one of best, best_random, best_worst, power, curvature (did you mean best",
        ),
        ("algo.filter={name: power, exponent: -1.0}", "algo.filter.exponent=-1.0: allowed is at least 0"),
        ("algo.gradient={name: look_ahead, eta: 0.0}", "algo.gradient.eta=0.0: allowed is above 0 and at most 1"),
        ("algo.sampler={name: prompt_curriculum, tau: 0.5}", "algo.sampler.tau: unknown key"),
        ("algo.sampler=[1]", "algo.sampler="),
        (
            "algo.gradient=look_ahead algo=grpo algo.updates_per_rollout=2",
            "algo.updates_per_rollout=2: algo.gradient=look_ahead",
        ),
    ],
)
def test_wrong_parts_are_refused_in_one_line(override, said):
    with pytest.raises(UserError) as refused:
        load_config(composed("train", override.split() if " algo" in override else [override]))
    assert str(refused.value).startswith(said)


def test_every_part_has_its_options():
    named = {kind for kinds in OPTIONS.values() for kind in kinds.values()}
    assert set(BY_OPTIONS) == named
    assert all(name == kind().name for kinds in OPTIONS.values() for name, kind in kinds.items())
