"""`opo evaluate` on two policies: both in eval.json, and their difference over the same prompts."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from small import small_llama
from tracked import wandb_file
from wandb_file import history, records

from analysis.commands import evaluate
from analysis.evaluation.policies import named, pairs
from analysis.evaluation.text import sentence
from analysis.report.page import write_report
from analysis.report.sources import Sources
from analysis.variance.text import interval_text
from opo.config.schema import ModelConfig
from opo.errors import UserError
from opo.model.load import save_model
from opo.model.policy import Policy
from opo.model.tiny import character_tokenizer
from opo.run.checkpoint import save_checkpoint
from opo.run.policies import EvaluatedPolicy, Weights, evaluated_policies


@pytest.mark.parametrize("checkpoint", [[], [None]])
def test_a_list_of_no_checkpoints_is_refused(checkpoint: list[Any]) -> None:
    with pytest.raises(UserError, match="names no weights"):
        evaluated_policies(checkpoint, None)


def test_what_fails_leaves_the_evaluation_that_was_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 2):
        save_checkpoint(run / "checkpoints", step, tiny_policy, {}, {"step": step})
    (run / "config.yaml").write_text(
        "model: {name: tiny}\ntask: {name: arithmetic}\nrollout: {max_new_tokens: 4}\nseed: 0\n"
    )
    values = {"checkpoint": str(run / "checkpoints/step-000001"), "prompts": 2, "responses": 2, "ks": [1], "threads": 1}
    with pytest.raises(UserError, match=r"names .*step-000001/policy twice \(step 1\)"):
        evaluated_policies([str(run), values["checkpoint"]], None)
    (tmp_path / "out" / "unfinished").mkdir(parents=True)
    (tmp_path / "out" / "unfinished" / ".responses.1.partial.parquet").touch()  # of a killed process
    evaluate.main(values, tmp_path / "out")
    assert not (tmp_path / "out" / "unfinished").exists()
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    weights = run / "checkpoints/step-000002/policy/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    values["checkpoint"] = str(run)
    with pytest.raises(UserError, match=r"model.safetensors: damaged, its SHA-256 is not the manifest's"):
        evaluate.main(values, tmp_path / "out")
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == before
    (tmp_path / "out" / "responses.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"responses.parquet: damaged, its SHA-256 is not the one in eval.json"):
        Sources.of(tmp_path / "out")


def tiny_policy(folder: Path) -> None:
    save_model(Policy(small_llama(vocabulary=len(character_tokenizer())), character_tokenizer()), folder)


def test_two_policies_are_evaluated_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = []
    for name in ("first", "second"):
        folders.append(tmp_path / name)
        save_model(Policy(small_llama(vocabulary=len(character_tokenizer())), character_tokenizer()), folders[-1])
    values = {
        "checkpoint": [str(folder) for folder in folders],
        "task": {"name": "arithmetic"},
        "rollout": {"max_new_tokens": 4},
        "prompts": 3,
        "responses": 2,
        "ks": [1, 2],
        "threads": 1,
    }
    evaluate.main(values, tmp_path)
    found = json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)
    assert [policy["policy"] for policy in found["policies"]] == ["first", "second"]
    for policy in found["policies"]:
        assert {"mean", "pass@1", "pass@2", "maj@1", "maj@2", "tokens"} <= set(policy["measures"])
        rate = policy["measures"]["pass@2"]
        assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
    assert [(d["policy"], d["reference"]) for d in found["differences"]] == [("second", "first")] * 5
    for d in found["differences"]:
        # equal weights, the same prompts, the same randomness
        assert d["value"] == 0
        assert d["low"] < 0 < d["high"]
        assert d["p_holm"] == 1
    printed = capsys.readouterr().out
    assert "minus first, prompt by prompt" in printed
    responses = pl.read_parquet(tmp_path / "responses.parquet")
    assert responses.height == 2 * 3 * 2
    assert (
        responses.filter(policy="first")["response"].to_list()
        == responses.filter(policy="second")["response"].to_list()
    )

    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert sentence(Sources.of(tmp_path).evaluation) in html  # pyright: ignore[reportArgumentType]
    for shown in (printed, html):
        for policy in found["policies"]:
            rate = policy["measures"]["pass@2"]
            assert interval_text(rate["value"], rate["low"], rate["high"]) in shown
    assert html.count('class="verdict') == 0
    assert re.findall('<h2 id="(.*?)"', html) == ["answer", "evaluation", "completions", "limits", "cite"]

    (about,) = [record.run for record in records(wandb_file(tmp_path)) if record.HasField("run")]
    assert (about.job_type, about.run_group) == ("evaluate", tmp_path.name)
    logged = {key.partition(".")[0] for row in history(wandb_file(tmp_path)) for key in row}
    assert {"eval/pass_at_2", "eval/pass_at_2_low", "eval/mean", "evaluation", "differences", "completions"} <= logged
    assert {"charts/pass_at_k_table", "figures/pass-at-k"} <= logged
    artifacts = {r.artifact.name: r.artifact for r in records(wandb_file(tmp_path)) if r.HasField("artifact")}
    assert {name for name, one in artifacts.items() if one.use_after_commit} == {"model-first", "model-second"}


def of_run(name: str, step: int, seed: int = 0, algo: str = "opo") -> EvaluatedPolicy:
    config: dict[str, Any] = {"seed": seed, "algo": {"name": algo}}
    weights = Weights(ModelConfig(), Path(name, str(step)), config, Path(name))
    return EvaluatedPolicy(f"step-{step}", f"step {step}", step, [weights])


def test_checkpoints_are_compared_within_their_run_and_with_the_first_run_at_the_same_step() -> None:
    measured = named([of_run(name, step, algo=name) for name in ("opo", "grpo") for step in (0, 10)])
    assert [one.name for one in measured] == ["step 0, opo", "step 10, opo", "step 0, grpo", "step 10, grpo"]
    same = {one.name: "a task" for one in measured}
    assert pairs(measured, same) == [
        ("step 10, opo", "step 0, opo"),
        ("step 0, grpo", "step 0, opo"),
        ("step 10, grpo", "step 0, grpo"),
        ("step 10, grpo", "step 10, opo"),
    ]
    others = same | {"step 0, grpo": "another", "step 10, grpo": "another"}
    assert pairs(measured, others) == [("step 10, opo", "step 0, opo"), ("step 10, grpo", "step 0, grpo")]
    seeds = named([of_run(f"opo-s{seed}", 10, seed=seed) for seed in (0, 1)])
    assert [one.name for one in seeds] == ["step 10, seed 0", "step 10, seed 1"]
    assert pairs(seeds, {one.name: 0 for one in seeds}) == [("step 10, seed 1", "step 10, seed 0")]


BENCHMARKS = {  # rows as these benchmarks have them
    "math500": [
        {
            "problem": f"What is {i}/2 + 1/2?",
            "solution": f"It is $\\boxed{{\\frac{{{i + 1}}}{{2}}}}$.",
            "answer": f"\\frac{{{i + 1}}}{{2}}",
        }
        | {"subject": "Algebra", "level": 2, "unique_id": f"test/algebra/{i}.json"}
        for i in range(3)
    ],
    "aime24": [
        {"id": i, "problem": f"Find {i} + 3.", "solution": "...", "answer": f"{i + 3:03d}", "year": "2024"}
        for i in range(3)
    ],
    "aime25": [{"problem": f"Find {i} + 70.", "answer": 70 + i, "id": str(i)} for i in range(3)],
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_files_of_benchmarks_are_evaluated_whole_and_each_question_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in BENCHMARKS[name]))
    save_model(Policy(small_llama(vocabulary=len(character_tokenizer())), character_tokenizer()), tmp_path / "model")
    values = {
        "checkpoint": str(tmp_path / "model"),
        "task": {"name": "math", "path": str(file), "eval_path": str(file), "template": "plain", "instruction": ""},
        "rollout": {"max_new_tokens": 2},
        "prompts": 3,
        "responses": 2,
        "ks": [1],
        "threads": 1,
        "tracking": {"mode": "off"},
    }
    evaluate.main(values, tmp_path)
    asked = pl.read_parquet(tmp_path / "responses.parquet")["prompt"].unique().to_list()
    assert sorted(text.splitlines()[0] for text in asked) == sorted(row["problem"] for row in BENCHMARKS[name])
    assert not (tmp_path / "wandb").exists()
    with pytest.raises(UserError, match="the eval split has 3 questions"):
        evaluate.main(values | {"prompts": 4}, tmp_path)
