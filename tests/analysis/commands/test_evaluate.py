"""`opo evaluate` on two policies: both in eval.json, and their difference over the same prompts."""

import json
from pathlib import Path

import pytest
from small import small_llama

from analysis.commands import evaluate
from opo.model.load import save_model
from opo.model.policy import Policy
from opo.model.tiny import character_tokenizer


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
    assert "minus first, prompt by prompt" in capsys.readouterr().out
