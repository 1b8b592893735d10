"""The variance study: what a pool holds against autograd, resuming, sharding, rollouts from elsewhere, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from run_folders import fake_policy
from small import VOCABULARY, random_rollouts, small_gpt2, small_llama
from studies import bandit_pool, bandit_study, config
from torch import nn

from analysis.claims.files import read_ledger, write_ledgers
from analysis.plots.study import write_figures
from analysis.study.audits import audit_interval, audit_terms, audit_value, jackknifed_gain
from analysis.study.config import VarianceConfig, load_config, study_name
from analysis.study.pools import Measurement, PromptPool, measure_pool, sequences, token_norms
from analysis.study.result import TABLES, Study, load
from analysis.study.run import load_pools, run_study
from analysis.variance.compare import compare
from analysis.variance.exact import softmax_bandit
from analysis.variance.intervals import resample_counts
from analysis.variance.power import plan
from opo.cli.compose import composed
from opo.errors import UserError
from opo.model.load import save_model
from opo.model.policy import Policy
from opo.model.tiny import character_tokenizer
from opo.run.policies import EvaluatedPolicy, evaluated_policies
from opo.system.manifest import write_manifest
from opo.system.seeding import rng_for


def policy_of(model: Any, temperature: float = 1.0) -> Policy:
    return Policy(model, character_tokenizer(), temperature)


def test_pool_against_autograd() -> None:
    """Gram, token norms, output-layer norms, parts and logit energies of a float64 model, each from one backward per thing."""
    policy, rollouts = policy_of(small_gpt2(), 0.8), random_rollouts(prompts=1, group=5, lengths=(2, 4, 7))
    pool = measure_pool(policy, "7", "text", ["a"] * 5, rollouts, Measurement(0.001, 2))
    model, parameters = policy.model, list(policy.model.parameters())
    prompt = rollouts.prompt_ids[0]

    def log_probabilities(n: int) -> torch.Tensor:
        ids = torch.tensor([prompt + rollouts.tokens_NT[n][rollouts.mask_NT[n]].tolist()])
        return (model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / 0.8).log_softmax(-1)

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])

    scores = []
    for n in range(5):
        table_TV, targets_T = log_probabilities(n), rollouts.tokens_NT[n][rollouts.mask_NT[n]]
        terms_T = table_TV.gather(1, targets_T[:, None])[:, 0]
        scores.append(gradient(terms_T.sum()))
        pi = table_TV.exp()
        energy = (1 - 2 * terms_T.exp() + (pi**2).sum(1)).sum()
        assert pool.logit_energy_R[n] == pytest.approx(energy.item())
        assert pool.logprobs_R[n] == pytest.approx(terms_T.sum().item())
        if n < 2:
            tokens = [gradient(term).square().sum().item() for term in terms_T]
            assert pool.token_norm2_sum_K[n] == pytest.approx(sum(tokens))
            assert pool.token_sum_norm2_K[n] == pytest.approx(scores[n].square().sum().item())
    stacked = torch.stack(scores)
    np.testing.assert_allclose(pool.gram_RR, stacked @ stacked.T, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(pool.part_norm2_SR.sum(0), np.diag(pool.gram_RR), rtol=1e-9)
    assert {"layer 0", "layer 1", "embedding"} <= set(pool.parts)


def test_token_norms_of_a_long_response_are_unbiased_and_need_few_passes() -> None:
    """Seven tokens in three scores: the cross terms that are left average out over the signs, and are none of neighbours."""
    policy, rollouts = policy_of(small_gpt2()), random_rollouts(prompts=1, group=2, lengths=(7, 7))
    parameters, inputs = list(policy.model.parameters()), tuple(x[:1] for x in sequences(rollouts))
    start, targets_T = len(rollouts.prompt_ids[0]), rollouts.tokens_NT[0]
    table_TV = policy.model(input_ids=inputs[0]).logits[0, start - 1 : -1].log_softmax(-1)
    terms_T = table_TV.gather(1, targets_T[:, None])[:, 0]
    z_TD = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(term, parameters, retain_graph=True)]) for term in terms_T]
    )
    gram_TT, apart_TT = z_TD @ z_TD.T, torch.arange(7)[:, None] - torch.arange(7)
    left_TT = torch.where(apart_TT % 3 == 0, gram_TT, 0.0)
    found, expected = [], []
    for seed in range(40):
        found.append(token_norms(policy, inputs, torch.Generator().manual_seed(seed), rows=3))
        sign_T = 2.0 * torch.randint(0, 2, (7,), generator=torch.Generator().manual_seed(seed)) - 1
        expected.append(float((left_TT * torch.outer(sign_T, sign_T)).sum()))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    exact, error = float(gram_TT.trace()), float(np.std(found)) / 40**0.5
    assert abs(np.mean(found) - exact) < 4 * error
    assert 0 < error < 0.1 * exact
    assert token_norms(policy, inputs, torch.Generator(), rows=7) == pytest.approx(exact)


def test_output_layer_norm_is_the_gradient_of_an_untied_head() -> None:
    policy, rollouts = policy_of(small_llama(), 1.3), random_rollouts(prompts=1, group=4)
    untied = nn.Linear(64, VOCABULARY, bias=False)
    untied.weight = nn.Parameter(policy.model.get_output_embeddings().weight.detach().clone())
    policy.model.set_output_embeddings(untied)
    found = measure_pool(policy, "0", "", list("abcd"), rollouts, Measurement(1, 0)).head_norm2_R
    for n in range(4):
        untied.weight.grad = None
        ids = torch.tensor([rollouts.prompt_ids[0] + rollouts.tokens_NT[n][rollouts.mask_NT[n]].tolist()])
        start = len(rollouts.prompt_ids[0])
        logprobs = (policy.model(input_ids=ids).logits[0, start - 1 : -1] / 1.3).log_softmax(-1)
        logprobs.gather(1, ids[0, start:, None]).sum().backward()
        assert untied.weight.grad is not None
        assert found[n].item() == pytest.approx(untied.weight.grad.square().sum().item(), rel=1e-4)


def test_unscored_responses_stay_out(tmp_path: Path) -> None:
    rollouts = random_rollouts(prompts=1, group=4)
    rewards = rollouts.rewards_PG.clone()
    rewards[0, 1] = torch.nan
    pool = measure_pool(
        policy_of(small_llama()), "0", "", list("abcd"), replace(rollouts, rewards_PG=rewards), Measurement(1, 1)
    )
    assert (pool.unscorable, pool.responses.tolist(), pool.gram_RR.shape) == (1, ["a", "c", "d"], (3, 3))
    pool.save(tmp_path / "pool.npz")
    again = PromptPool.load(tmp_path / "pool.npz")
    assert all(np.array_equal(getattr(again, name), value) for name, value in vars(pool).items())
    with pytest.raises(UserError, match="prompt 0: 1 of 4 responses have a reward"):
        measure_pool(
            policy_of(small_llama()),
            "0",
            "",
            list("abcd"),
            replace(rollouts, rewards_PG=torch.full((1, 4), torch.nan).index_fill(1, torch.tensor([0]), 1.0)),
            Measurement(1, 1),
        )


def test_gain_of_a_known_baseline_against_enumeration() -> None:
    """Jackknifed gains average to S (mu - b*)^2 and to that less S (b_L - b*)^2; the plain plug-in does not."""
    arms = softmax_bandit([0.0, 0.5, -0.5, 1.0], [1.0, 0.0, 1.0, 0.0], [9.0, 2.0, 5.0, 3.0])
    draws = [arms.sample(12, np.random.default_rng(seed)) for seed in range(4000)]
    for weights, baseline in (
        (lambda p: np.diag(p.gram), arms.best_baseline),
        (lambda p: p.lengths, arms.length_baseline),
    ):
        pairs = np.array([jackknifed_gain(pool.rewards, np.diag(pool.gram), weights(pool))[:2] for pool in draws])
        error = pairs.std(0) / np.sqrt(len(pairs))
        exact = arms.variance(arms.mean_reward) - arms.variance(baseline)
        assert abs(pairs[:, 1].mean() - exact) < 4 * error[1] + 1e-3
        level = arms.variance(arms.mean_reward) + float(np.square(arms.gradient).sum())
        assert abs(pairs[:, 0].mean() - level) < 4 * error[0]


def test_audits_find_the_exponent_that_is_there() -> None:
    """Scores with |z|^2 = c_p length^1.4: the exponent is 1.4, all variance is explained, ranks agree, whatever the prompt's scale.

    A ratio that is the same at every prompt is known exactly; a mean of equal ranks is not, so its interval is all
    there can be.
    """
    pools = []
    for p in range(8):
        base, rng = bandit_pool(p), np.random.default_rng(p)
        lengths = rng.integers(2, 60, 32)
        norms = (1 + p) ** 3 * lengths**1.4
        pools.append(replace(base, lengths_R=lengths, gram_RR=np.diag(norms), part_norm2_SR=np.stack([norms, norms])))
    rows = pl.DataFrame(audit_terms(pools))
    counts = resample_counts(8, 200, np.random.default_rng(0))
    for measure, expected in {"norm_length_exponent": 1.4, "norm_length_r2": 1.0, "norm_length_rank": 1.0}.items():
        terms = rows.filter(scope="all", measure=measure).select("a", "b", "c").to_numpy()
        assert audit_value(measure, terms) == pytest.approx(expected)
        low, high = audit_interval(measure, terms, counts)
        assert (low, high) == (pytest.approx((expected, expected), abs=1e-6) if "rank" not in measure else (-1.0, 1.0))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder and a file of rollouts for it: five prompts of eight responses."""
    folder, rng = tmp_path_factory.mktemp("foreign"), np.random.default_rng(0)
    save_model(policy_of(small_llama(vocabulary=len(character_tokenizer()))), folder / "model")
    rows = [
        {
            "prompt_id": f"q{p}",
            "prompt": f"{p}+1=",
            "response": "9" * int(rng.integers(1, 9)),
            "reward": float(rng.random() < 0.5),
        }
        for p in range(5)
        for _ in range(8)
    ]
    pl.DataFrame(rows).write_parquet(folder / "rollouts.parquet")
    pl.DataFrame(rows).write_ndjson(folder / "rollouts.jsonl")
    return folder / "model", folder / "rollouts.parquet"


def foreign_config(foreign: tuple[Path, Path], **changes: Any) -> Any:
    model, file = foreign
    values = {
        "model": {"name": "pretrained", "path": str(model)},
        "rollouts": str(file),
        "group_sizes": [2, 4],
        "threads": 1,
    }
    return config(
        **(values | {"estimators": ["leave_one_out", "length_weighted", "opo"], "num_bootstrap": 200} | changes)
    )


def test_rollouts_from_elsewhere_shards_and_resumption_agree(foreign: tuple[Path, Path], tmp_path: Path) -> None:
    whole = run_study(foreign_config(foreign), tmp_path / "whole")
    assert whole is not None
    assert run_study(foreign_config(foreign, shard="1/2"), tmp_path / "cut") is None
    merged = run_study(foreign_config(foreign, shard="0/2"), tmp_path / "cut")
    jsonl = run_study(foreign_config((foreign[0], foreign[1].with_suffix(".jsonl"))), tmp_path / "jsonl")
    (tmp_path / "whole" / "pools" / "model" / "prompt-000003.npz").unlink()
    resumed = run_study(foreign_config(foreign), tmp_path / "whole")
    for other in (merged, jsonl, resumed, load(tmp_path / "whole")):
        assert other is not None
        for name in TABLES:
            assert getattr(other, name).equals(getattr(whole, name)), name
    opo, weighted = (
        whole.moments.filter(estimator=name, measure="relative_variance")["value"].to_list()
        for name in ("opo", "length_weighted")
    )
    assert opo == pytest.approx(weighted)
    write_figures(whole, tmp_path / "whole" / "figures")
    assert (tmp_path / "whole" / "figures" / "variance-model.svg").exists()
    write_ledgers(whole, tmp_path / "whole")
    ledger = read_ledger(tmp_path / "whole", "model")
    assert ledger is not None
    effects = {claim["id"]: claim["effect"] for claim in ledger["claims"]}
    ratios = whole.compare("model", whole.default_group_size).filter(estimator="length_weighted")
    assert effects["variance_below_leave_one_out"] == pytest.approx(ratios["value"].item())
    with pytest.raises(UserError, match=r"its pools were made with temperature=1.0, not 0.5"):
        run_study(foreign_config(foreign, rollout={"temperature": 0.5}), tmp_path / "whole")


def test_scores_are_taken_in_full_precision_however_the_run_was_trained(
    foreign: tuple[Path, Path], tmp_path: Path
) -> None:
    energies = []
    for compute in ("float32", "bfloat16"):
        model = {"name": "pretrained", "path": str(foreign[0]), "compute": compute}
        study = run_study(foreign_config(foreign, model=model), tmp_path / compute)
        assert study is not None
        energies.append(study.responses["logit_energy"].to_list())
    assert energies[0] == energies[1]


def test_pools_of_a_study_can_be_measured_again_without_a_model(foreign: tuple[Path, Path], tmp_path: Path) -> None:
    study = run_study(foreign_config(foreign), tmp_path)
    assert study is not None
    pools = load_pools(tmp_path, "model")
    names, rng = ["leave_one_out", "length_weighted", "opo"], rng_for(0, "partitions", 2)
    table = compare(pools, 2, names, rng, counts_BP=study.resamples(len(pools)))
    for row in table:
        again = study.select("relative_variance", group_size=2).filter(estimator=row.name).row(0, named=True)
        # so few prompts give no interval: null in the study, all that is possible in the table
        assert (again["low"], again["high"]) == (None, None)
        assert row.interval("relative_variance") == (0.0, np.inf)
        assert row.relative_variance == pytest.approx(again["value"])
    found = plan(pools, 2, "none", "leave_one_out", 0.9, np.random.default_rng(0), measure="trace_cov")
    assert found.cheapest.prompts >= 5
    with pytest.raises(UserError, match="no pools here"):
        load_pools(tmp_path, "step-000001")


def test_result_is_strict_json_and_reads_back(tmp_path: Path) -> None:
    study = bandit_study()
    study.save(tmp_path)
    text = (tmp_path / "result.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["schema"] == "opo.variance/1"
    assert pl.read_parquet(tmp_path / "variance.parquet").equals(study.moments)
    again = load(tmp_path)
    assert all(
        getattr(again, name).equals(getattr(study, name)) for name in (*TABLES, "prompts", "audit_terms", "responses")
    )
    (tmp_path / "result.json").write_text(text.replace("opo.variance/1", "opo.variance/0"))
    with pytest.raises(UserError, match="this version reads"):
        load(tmp_path)
    with pytest.raises(UserError, match="no variance study here"):
        load(tmp_path / "absent")


def test_prompt_rows_make_the_tables(tmp_path: Path) -> None:
    """The material in prompts.parquet gives the numbers of the table: a reader can recompute them."""
    study: Study = bandit_study()
    rows = study.prompts.filter(policy="step-000020", estimator="length_weighted", group_size=8)
    value = (rows["second"] - rows["signal"]).mean() / rows["signal"].mean()  # pyright: ignore[reportOperatorIssue]
    assert study.select("relative_variance").filter(estimator="length_weighted")["value"][0] == pytest.approx(value)


def test_effective_sample_sizes_of_the_weights_are_in_the_table() -> None:
    study = bandit_study()
    found = dict(study.select("effective_sample_size", group_size=8).select("estimator", "value").iter_rows())
    assert found["group_mean"] == found["leave_one_out"] == 8
    assert 1 < found["length_weighted"] < 8
    assert "none" not in found


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rollout": {"top_p": 0.9}}, r"rollout\.top_p=0\.9"),
        ({"rollout": {"top_k": 5}}, r"rollout\.top_k=5"),
        ({"rollout": {"temperature": 0.0}}, r"rollout\.temperature=0\.0"),
        ({"rollout": {"tempratur": 1.0}}, r"rollout\.tempratur: unknown key \(did you mean temperature\?\)"),
        ({"estimators": ["leave_one_out", "length_wieghted"]}, r"length_wieghted.*did you mean length_weighted"),
        ({"estimators": ["leave_one_out", "ppo"]}, r"ppo: it weighs tokens, not responses; opo zoo"),
        ({"estimators": ["leave_one_out", "remax"]}, r"remax: it needs greedy_rewards_P"),
        ({"estimators": ["leave_one_out", "capo"]}, r"capo: it is grpo with parts or settings; opo zoo"),
        ({"estimators": ["leave_one_out", "copo"]}, r"copo: it needs answers"),
        ({"estimators": ["none"]}, r"reference=leave_one_out: must be one of the estimators"),
        ({"estimators": ["leave_one_out", "shrinkage"]}, r"prompts_per_batch=null: shrinkage couples"),
        ({"group_sizes": [32]}, r"group_sizes has 32: allowed are 2 to responses / 2 = 16"),
        ({"group_sizes": []}, r"group_sizes=\[\]"),
        ({"prompts": 1}, r"prompts=1: allowed is at least 2"),
        ({"prompts": "many"}, r"prompts=many: a whole number is needed"),
        ({"shard": "4/4"}, r"shard=4/4"),
        ({"split": "test"}, r"split=test: not one of train, eval"),
        ({"checkpoint": "nowhere"}, r"checkpoint=nowhere: no such folder"),
        ({"rollouts": "nowhere.parquet"}, r"rollouts=nowhere\.parquet: no such file"),
        ({"task": {"name": "arithmetics"}}, r"task=arithmetics: not one of arithmetic.*did you mean arithmetic"),
    ],
)
def test_refusals(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


def test_checkpoints_of_several_seeds_are_one_policy_a_step(tmp_path: Path) -> None:
    for seed in range(2):
        run = tmp_path / f"s{seed}"
        for step in (10, 20):
            fake_policy(run / "checkpoints" / f"step-{step:06d}" / "policy")
            write_manifest(run / "checkpoints" / f"step-{step:06d}", step=step)
        (run / "config.yaml").write_text(
            yaml.safe_dump({"model": {"name": "tiny"}, "seed": seed, "task": {"name": "arithmetic"}, "rollout": {}})
        )
    one = policies_of(vars_of(checkpoint=str(tmp_path / "s0")))
    assert [(stage.label, stage.step, len(stage.weights)) for stage in one] == [
        ("start", 0, 1),
        ("step 10", 10, 1),
        ("step 20", 20, 1),
    ]
    both = policies_of(vars_of(checkpoint=[str(tmp_path / "s0"), str(tmp_path / "s1")]))
    assert [(stage.step, len(stage.weights)) for stage in both] == [(0, 2), (10, 2), (20, 2)]
    assert both[1].paths == [str(tmp_path / f"s{seed}" / "checkpoints" / "step-000010" / "policy") for seed in range(2)]
    with pytest.raises(UserError, match="neither a run folder"):
        policies_of(vars_of(checkpoint=str(tmp_path)))


def policies_of(values: dict[str, Any]) -> list[EvaluatedPolicy]:
    config = load_config(values)
    return evaluated_policies(config.checkpoint, config.model)


def vars_of(**changes: Any) -> dict[str, Any]:
    return {"estimators": ["leave_one_out"], "group_sizes": [2]} | changes


def test_the_file_and_the_schema_have_the_same_defaults() -> None:
    assert load_config(composed("variance")) == VarianceConfig()


def test_a_study_is_named_by_what_it_measures() -> None:
    assert study_name([]) == study_name(["shard=0/4", "threads=1"]) == "tiny"
    long = study_name(["checkpoint=runs/default/opo-arithmetic-s0", "prompts=4", "shard=0/4"])
    assert long.startswith("checkpoint=opo-arithmetic-s0-prompts=4-")
    assert long != study_name(["checkpoint=runs/other/opo-arithmetic-s0", "prompts=4"])
