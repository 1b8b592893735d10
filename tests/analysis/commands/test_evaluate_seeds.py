"""`opo evaluate` looks at every seed that it is given."""

import json
from pathlib import Path

import torch
import yaml
from small import small_llama

from analysis.commands import evaluate
from opo.model.load import save_model
from opo.model.policy import Policy
from opo.model.tiny import character_tokenizer
from opo.run.checkpoint import save_checkpoint


def test_two_runs_that_differ_in_their_seed_are_both_evaluated(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    model = small_llama(vocabulary=len(tokenizer))
    save_model(Policy(model, tokenizer), tmp_path / "base")
    for seed in range(2):
        with torch.no_grad():
            model.lm_head.weight[seed + 3] += 5.0  # pyright: ignore[reportArgumentType, reportCallIssue, reportIndexIssue]
        run = tmp_path / f"run-s{seed}"
        save_checkpoint(run / "checkpoints", 10, lambda to: save_model(Policy(model, tokenizer), to), {}, {})
        config = {"model": {"name": "pretrained", "path": str(tmp_path / "base")}, "seed": seed, "rollout": {}}
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"task": {"name": "arithmetic"}}))
    asked = {
        "checkpoint": [str(tmp_path / f"run-s{seed}") for seed in range(2)],
        "prompts": 3,
        "responses": 2,
        "ks": [1],
        "num_bootstrap": 100,
        "rollout": {"max_new_tokens": 6, "temperature": 0.1},
        "threads": 1,
        "tracking": {"mode": "off"},
    }
    evaluate.main(asked, tmp_path)
    policies = json.loads((tmp_path / "eval.json").read_text())["policies"]
    assert [policy["policy"] for policy in policies] == [
        "start, seed 0",
        "start, seed 1",
        "step 10, seed 0",
        "step 10, seed 1",
    ]
    assert [policy["weights"] for policy in policies[2:]] == [
        str(tmp_path / f"run-s{seed}" / "checkpoints" / "step-000010" / "policy") for seed in range(2)
    ]
