"""Every format of other trainers by its own columns."""

import json
from pathlib import Path
from typing import Any

import pytest
from foreign import chat_model, encoded, write

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
