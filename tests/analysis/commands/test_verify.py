"""`opo verify` and `opo doctor`: what they would run, that they conclude from what is on disk, and that faults are found."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from run_folders import fake_policy
from small import random_rollouts, small_llama
from studies import bandit_pool, write_run

from analysis.commands import doctor, findings, verify
from analysis.score_gram.core import score_gram
from analysis.study.config import load_config as load_study_config
from analysis.study.pools import PoolFolder
from analysis.study.run import setting_of
from analysis.tracking.record import describe
from opo.cli.compose import composed
from opo.config.load import load_config as load_run_config
from opo.errors import StoppedRun, UserError
from opo.model.load import save_model
from opo.model.policy import Policy
from opo.model.tiny import character_tokenizer
from opo.run.checkpoint import save_checkpoint
from opo.run.policies import evaluated_policies


def test_four_algorithms_with_three_seeds_that_opo_train_takes() -> None:
    plans = verify.trainings(verify.VerifyConfig())
    assert len({plan.name for plan in plans}) == 12
    runs = [load_run_config(composed("train", plan.overrides)) for plan in plans]
    counted = sorted((run.algo.name, run.algo.updates_per_rollout == 1) for run in runs if run.seed == 2)
    assert counted[:3] == [("grpo", False), ("grpo", True), ("opo", True)]
    assert {run.steps for run in runs} == {30}
    assert {run.tracking.mode for run in runs} == {"offline"}
    assert all(2 * run.checkpoint.every >= run.steps and run.checkpoint.keep >= 2 for run in runs), (
        "middle and end are kept"
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps": 1}, "steps=1: allowed is at least 2"),
        ({"seeds": [0]}, r"seeds=\[0\]: too few; at least 2"),
        ({"seeds": [1, 1]}, "at least two different ones"),
        ({"responses": 16}, "group_sizes has 16"),
        ({"setps": 3}, "setps: unknown key .*did you mean steps"),
    ],
)
def test_refusals(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        verify.load_config(changes)


def test_it_concludes_from_what_is_on_disk(tmp_path: Path) -> None:
    """Runs, completions and pools as an interrupted verify leaves them become claims, figures and the page."""
    config = verify.load_config({"steps": 20, "prompts": 9, "responses": 32, "group_sizes": [2, 8], "seeds": [0, 1, 2]})
    plans = verify.trainings(config)
    gain = {"opo": 0.02, "grpo": 0.01, "ppo": 0.0}
    for plan in plans:
        keys = dict(part.split("=") for part in plan.overrides)
        updates = int(keys.get("algo.updates_per_rollout", "1"))
        folder = write_run(tmp_path / plan.name, keys["algo"], int(keys["seed"]), gain[keys["algo"]], updates=updates)
        (folder / "rollouts").mkdir()
        answers = ["abcd", "efgh", "ijkl"] if keys["algo"] == "opo" else ["abab", "abab", "abac"]
        rows = [{"prompt_index": p, "response": a + str(p)} for p in range(3) for a in answers]
        pl.DataFrame(rows).write_parquet(folder / "rollouts" / "step-000020.parquet")
        for step in (10, 20) if keys["algo"] == "opo" else ():
            save_checkpoint(folder / "checkpoints", step, fake_policy, {"x": torch.zeros(1)}, {})
    runs = [str(tmp_path / plan.name) for plan in plans if plan.name.startswith("opo-")]
    chosen = replace(load_study_config(verify.study_values(config, runs)), num_bootstrap=200)
    planned = evaluated_policies(chosen.checkpoint, chosen.model)
    assert [(stage.label, len(stage.weights)) for stage in planned] == [("start", 3), ("step 10", 3), ("step 20", 3)]
    for i, stage in enumerate(planned):
        folder = PoolFolder(tmp_path / "variance" / "pools" / stage.name, setting_of(chosen, stage))
        folder.start()
        for number in range(config.prompts):
            folder.save(number, bandit_pool(100 * i + number))
    findings.conclude_study(chosen, tmp_path / "variance")
    findings.study_figures(tmp_path / "variance")
    findings.study_ledgers(tmp_path / "variance")
    findings.write_curves(tmp_path)
    page, tables = findings.conclude(tmp_path)
    assert page == tmp_path / "report.html"
    assert len(tables) == 3
    claims = {claim["id"]: claim for claim in json.loads((tmp_path / "claims.json").read_text())["claims"]}
    trainings = {"reward_above_grpo", "reward_above_ppo", "on_policy_kl", "on_policy_entropy"}
    diversity = {"distinct_above_grpo", "self_bleu_below_grpo", "repetition_below_grpo"}
    variance = {"variance_below_none", "variance_below_leave_one_out", "norm_proportional_to_length"}
    assert trainings | diversity | variance <= set(claims)
    assert {claims[name]["verdict"] for name in trainings} == {"supported"}
    assert claims["distinct_above_grpo"]["effect"] > 1.5
    assert claims["self_bleu_below_grpo"]["effect"] < 0.5
    for name in ("ledger", "train-reward_mean", "reward-against-tokens"):
        assert (tmp_path / "figures" / f"{name}.svg").exists()
        assert (tmp_path / "figures" / f"{name}.png").exists()
    assert "What this does not say" in page.read_text(encoding="utf-8")

    recorded = describe(tmp_path)
    assert (recorded.job_type, recorded.group) == ("verify", "s")
    assert len(recorded.tables["ledger"].rows) == len(claims)
    assert {"figures/ledger", "figures/train-reward_mean"} <= set(recorded.images)
    assert {name for files in recorded.made for name in files.paths} == {"claims.json", "report.html"}
    study = describe(tmp_path / "variance")
    assert (study.job_type, study.group) == ("variance", "s")
    assert [(files.name, files.aliases) for files in study.measured_on] == 3 * [
        ("checkpoint-0", ("step-000000",)),
        ("checkpoint-0", ("step-000010",)),
        ("checkpoint-0", ("step-000020",)),
    ]
    assert {"on-policy", "opo"} <= set(study.tags)
    behind = {files.name for files in recorded.measured_on}
    assert behind == {"checkpoint-0", study.made[0].name}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(Policy(small_llama(vocabulary=len(character_tokenizer())), character_tokenizer()), path)
    return path


def doctor_config(folder: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "model": {"name": "pretrained", "path": str(folder)},
        "task": {"name": "arithmetic"},
        "threads": 1,
        "prompts": 1,
    }
    return values | {"rollout": {"max_new_tokens": 8}, "responses": 6} | changes


def test_doctor_finds_nothing_wrong_with_a_sound_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main(doctor_config(folder), folder)
    shown = capsys.readouterr().out
    assert "FAILED" not in shown
    assert shown.count(" ok") >= 14
    refused = doctor.examine(doctor.load_config(doctor_config(folder, float64_limit=10.0)))
    assert [check.name for check in refused if check.bound is None] == ["gradient, this precision against float64"]


def test_a_model_whose_scores_are_not_captured_is_one_row_of_doctor(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing(*inputs: Any, method: str = "hooks", **others: Any) -> Any:
        if method == "hooks":
            raise ValueError("mlp: its norm is another")
        return score_gram(*inputs, method="loop", **others)

    monkeypatch.setattr(doctor, "score_gram", refusing)
    with pytest.raises(StoppedRun, match=r"1 of 14 checks failed: score Gram, .* \(mlp: its norm is another\)$"):
        doctor.main(doctor_config(folder), folder)
    assert "mean score is zero" in capsys.readouterr().out


def test_doctor_finds_a_sampler_that_is_not_the_policy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temperature that only the sampler applies: its log-probabilities are not the trainer's, and mean scores are not zero."""
    from opo.rollout import hf

    right = hf.policy_logits
    monkeypatch.setattr(hf, "policy_logits", lambda logits, sampling: right(logits * 1.5, sampling))
    with pytest.raises(StoppedRun, match="sampler against trainer, mean") as caught:
        doctor.main(doctor_config(folder, prompts=1, responses=32), folder)
    assert "padded batch" not in str(caught.value)


def test_mean_score_deviations_are_of_order_one_on_policy_and_large_off_it() -> None:
    """Under the policy's own samples U / sd(U) is of order one; with all responses the same it is sqrt(pairs / 2)."""
    rollouts, model = random_rollouts(prompts=1, group=6, lengths=(3,)), small_llama()
    same = rollouts.with_(
        tokens_NT=rollouts.tokens_NT[:1].expand(6, -1).clone(), mask_NT=rollouts.mask_NT[:1].expand(6, -1).clone()
    )
    gram = score_gram(model, *doctor.sequences(same))
    assert isinstance(gram, torch.Tensor)
    assert doctor.mean_score_deviations(gram) == pytest.approx((30 / 2) ** 0.5, rel=1e-4)
    generator = torch.Generator().manual_seed(0)
    deviations = []
    for _ in range(50):
        z = torch.randn(16, 40, generator=generator, dtype=torch.float64)
        deviations.append(doctor.mean_score_deviations(z @ z.T))
    assert 0.5 < torch.tensor(deviations).mean() < 1.1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rollout": {"top_p": 0.5}}, "truncated sampling"),
        ({"responses": 1}, "responses=1: allowed is at least 4"),
        ({"model": {"dtype": "int8"}}, "model.dtype=int8"),
    ],
)
def test_doctor_refusals(folder: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        doctor.load_config(doctor_config(folder, **changes))
