"""Every format of other trainers by its own columns."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import chat_model, encoded, write

from analysis.study.pools import Measurement, measure_pool, sequences
from opo.config.schema import ModelConfig
from opo.errors import UserError
from opo.model.load import load_policy

__all__ = ["chat_model"]  # a fixture


def trace(p: int, g: int, weighted: bool) -> dict[str, Any]:
    """One sampled turn of prime-rl, token ids and log-probabilities beside it."""
    nodes = [
        {"parent": None, "message": {"role": "user", "content": "1"}, "sampled": False, "token_ids": [5, 6 + p]},
        {"parent": 0, "message": {"role": "assistant", "content": "2"}, "sampled": True, "token_ids": [7, 8 + g]},
    ]
    nodes[1] |= {"mask": [True, True], "logprobs": [-1.0, -2.0]}
    rewards = {"right": {"score": g % 2, "weight": 2.0}, "brief": None} if weighted else {"right": 2.0 * (g % 2)}
    return {"nodes": nodes, "rewards": rewards, "ok": True, "errors": [], "agent": {"name": "a", "trainable": True}}


FOREIGN: dict[str, Any] = {
    "verl": lambda p, g: {
        "input": f"{p}+1=",
        "output": str(g),
        "gts": [None, "2", {"a": 1}][p],
        "score": g % 2,
        "step": 7,
        "acc": "True",
    },
    "verl v1": lambda p, g: {"input": f"{p}+1=", "output": str(g), "score": g % 2, "step": 7, "uid": f"a_{p}_{g}_0"},
    "prime-rl rollouts": lambda p, g: {
        "example_id": p,
        "env_name": "sums",
        "prompt": [{"role": "user", "content": f"{p}+1="}],
        "completion": None if (p, g) == (0, 0) else [{"role": "assistant", "content": str(g)}],
        "reward": g % 2,
        "error": {"error": "ModelError"} if (p, g) == (0, 0) else None,
    },
    "prime-rl traces": lambda p, g: trace(p, g, False) | {"group_id": p, "env_name": "sums", "policy_version": 7},
    "episodes": lambda p, g: {
        "group": {"id": p},
        "run": {"work": {"step": 8, "policy": {"start": 7, "end": 7}}},
        "ok": (p, g) != (0, 0),
        "errors": [],
        "traces": [trace(p, g, True)],
    },
    "prime-rl parquet": lambda p, g: {
        "input_tokens": [5, 6 + p],
        "output_tokens": [7, 8 + g],
        "rewards": g % 2,
        "temperature": 0.7,
    },
    "platform": lambda p, g: {
        "problem_id": p,
        "step": 7,
        "prompt": "",
        "completion": json.dumps([{"role": "assistant", "content": str(g)}]),
        "trajectory": json.dumps(
            [{"messages": [{"role": "user", "content": f"{p}+1="}, {"role": "assistant", "content": "1"}]}]
        ),
        "reward": g % 2,
        "advantage": 0.1,
    },
    "open-instruct": lambda p, g: {
        "prompt_idx": p,
        "prompt_tokens": [5, 6 + p],
        "response_tokens": [7, 8 + g],
        "reward": g % 2,
        "step": 7,
    },
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_each_format_by_its_own_columns(kind: str, chat_model: Path, tmp_path: Path) -> None:
    content = [FOREIGN[kind](p, g) for p in range(3) for g in range(4)]
    found, notes = encoded(write(tmp_path / "r.jsonl", content), chat_model)
    names = {"verl v1": "verl", "episodes": "prime-rl traces", "platform": "prime-rl parquet"}
    assert notes.files[0]["format"].startswith(names.get(kind, kind))
    failed = kind in ("prime-rl rollouts", "episodes")
    assert [len(prompt.rewards) for prompt in found] == [3 if failed else 4, 4, 4]
    assert notes.left_out == ({"of rollouts that failed (error)": 1} if failed else {})
    scale = 2.0 if kind in ("prime-rl traces", "episodes") else 1.0
    assert found[1].rewards == [0.0, scale, 0.0, scale]
    assert notes.steps == ([] if kind in ("prime-rl rollouts", "prime-rl parquet") else [7])
    assert notes.temperature == (0.7 if kind == "prime-rl parquet" else None)
    ids = kind in ("prime-rl traces", "episodes", "prime-rl parquet", "open-instruct")
    assert (notes.ends_added == 0) == ids
    assert (found[1].logprobs[0] == [-1.0, -2.0]) == (kind in ("prime-rl traces", "episodes"))


def conversation(p: int, g: int) -> dict[str, Any]:
    """Two turns with a tool between, as prime-rl writes it: [5, 6 + p] asked, [7, 8] said, [9, 10, 11] the tool, [12, 13 + g] said."""
    row = trace(p, 0, False)
    row["nodes"] += [
        {
            "parent": 1,
            "message": {"role": "tool", "content": "3"},
            "sampled": False,
            "token_ids": [9, 10, 11],
            "mask": [False] * 3,
        },
        {
            "parent": 2,
            "message": {"role": "assistant", "content": "4"},
            "sampled": True,
            "token_ids": [12, 13 + g],
            "mask": [False, True],  # the template wrote the first
            "logprobs": [-3.0],
        },
    ]
    return row | {"rewards": {"right": float(g % 2)}, "group_id": p, "env_name": "tools", "policy_version": 7}


def test_turns_with_tools_between_are_read_with_a_mask(chat_model: Path, tmp_path: Path) -> None:
    """The response runs from the first sampled token to the last; what the policy did not produce is context without score or length."""
    (first, *_), notes = encoded(
        write(tmp_path / "r.jsonl", [conversation(p, g) for p in range(3) for g in range(4)]), chat_model
    )
    assert first.prompt_ids == [5, 6]
    assert first.response_ids[1] == [7, 8, 9, 10, 11, 12, 14]
    own = [True, True, False, False, False, False, True]
    assert first.produced == [own] * 4
    assert first.logprobs[0] == [-1.0, -2.0, 0.0, 0.0, 0.0, 0.0, -3.0]
    assert notes.turns == 12
    assert "12 responses hold tokens that the policy did not produce" in notes.paragraph()
    rollouts = first.rollouts()
    assert rollouts.lengths_N.tolist() == [3] * 4
    _, attended_NL, response_NL = sequences(rollouts)
    assert attended_NL.tolist() == [[1] * 9] * 4
    assert response_NL[0].tolist() == [0, 0, *map(int, own)]
    # the same as a plain table with verl's mask
    table = [
        {
            "prompt": [5, 6 + p],
            "response": [7, 8, 9, 10, 11, 12, 13 + g],
            "response_mask": list(map(int, own)),
            "reward": g % 2,
        }
        for p in range(3)
        for g in range(4)
    ]
    (plain, *_), _ = encoded(write(tmp_path / "plain.jsonl", table), chat_model)
    assert (plain.prompt_ids, plain.response_ids, plain.produced) == (
        first.prompt_ids,
        first.response_ids,
        first.produced,
    )


def test_scores_of_several_turns_are_those_of_the_tokens_that_were_produced(chat_model: Path, tmp_path: Path) -> None:
    """Gram, lengths and log-probabilities against autograd; equal turns after different tools are different responses."""
    found, _ = encoded(
        write(tmp_path / "r.jsonl", [conversation(p, g // 2) for p in range(2) for g in range(4)]), chat_model
    )
    rollouts = found[0].rollouts()
    tools = rollouts.tokens_NT.clone()
    tools[1, 3] = 20  # same words of the policy, another answer of the tool
    rollouts = rollouts.with_(tokens_NT=tools, rewards_PG=torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=torch.float64))
    assert rollouts.first_N.tolist() == [0, 1, 2, 2]
    policy = load_policy(ModelConfig(name="pretrained", path=str(chat_model)), 1.0, "cpu")
    pool = measure_pool(policy, "0", "", ["a"] * 4, rollouts, Measurement(1.0, 1))
    scores = []
    for n in range(4):
        ids = torch.tensor([[5, 6, *tools[n].tolist()]])
        table_LV = policy.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        terms_L = table_LV.gather(1, ids[0, 1:, None])[:, 0]
        own = terms_L[1:][rollouts.mask_NT[n]].sum()
        assert pool.logprobs_R[n] == pytest.approx(own.item(), rel=1e-5)
        grads = torch.autograd.grad(own, list(policy.model.parameters()), allow_unused=True, materialize_grads=True)
        scores.append(torch.cat([g.flatten() for g in grads]).double())
    stacked = torch.stack(scores)
    torch.testing.assert_close(torch.tensor(pool.gram_RR), stacked @ stacked.T, rtol=1e-4, atol=1e-4)
    assert pool.lengths_R.tolist() == [3] * 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: row["nodes"][3].update(parent=0), "sampled turns on several branches"),
        (
            lambda row: row["nodes"][2].pop("token_ids"),
            "2 sampled turns and nodes without token ids; messages do not say which",
        ),
        (lambda row: row["nodes"][3].update(mask=[True]), "a node of 2 token ids and a mask of 1"),
    ],
)
def test_damaged_turns_are_one_line(change: Any, says: str, chat_model: Path, tmp_path: Path) -> None:
    row = conversation(0, 0)
    change(row)
    with pytest.raises(UserError, match=says):
        encoded(write(tmp_path / "r.jsonl", [row]), chat_model)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"response": [7, 8], "response_mask": [1]}, "no list of 2 zeros and ones"),
        ({"response": [7, 8], "response_mask": [0, 0]}, "with a one in it"),
        ({"response": "1", "response_mask": [1]}, "beside a response that is no token ids"),
        (
            {"response": [{"role": "assistant", "content": "1"}, {"role": "tool", "content": "2"}]},
            r"several turns \(assistant, tool\); messages do not say which tokens the policy sampled",
        ),
    ],
)
def test_masks_that_do_not_fit_are_one_line(row: dict[str, Any], says: str, chat_model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", [{"prompt": [5], "reward": 1.0} | row] * 2)
    with pytest.raises(UserError, match=says):
        encoded(file, chat_model)
