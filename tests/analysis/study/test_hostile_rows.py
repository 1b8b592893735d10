"""Rows that no trainer should write and some do: read right, or one line that names the row."""

import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from foreign import OWN, chat_model, encoded, model, rows, write
from studies import config

from analysis.study.external import RewardChoice, read_groups
from analysis.study.external.audit import answers
from analysis.study.external.imported import Imported
from opo.errors import UserError

__all__ = ["chat_model", "model"]  # fixtures


def episode(p: int, g: int) -> dict[str, Any]:
    """An episode of prime-rl with one trace of one sampled turn."""
    nodes = [
        {"parent": None, "sampled": False, "token_ids": [5, 6 + p]},
        {"parent": 0, "sampled": True, "token_ids": [7, 8 + g], "mask": [True, True], "logprobs": [-1.0, -2.0]},
    ]
    one = {"nodes": nodes, "rewards": {"right": 1.0 * (g % 2)}, "agent": {"name": "a"}}
    return {"traces": [one], "group": {"id": p}, "run": {"work": {"step": 1}}}


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    row = episode(2, 3)
    change(row)
    return row


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.update(run="a"), "run that is a str; an object is needed"),
        (lambda r: r.update(group="a"), "group that is a str; an object is needed"),
        (lambda r: r.update(traces=[None]), "traces that are no list of objects"),
        (lambda r: r["traces"][0].update(agent="a"), "agent that is a str"),
        (lambda r: r["traces"][0].update(task="gsm8k"), "task that is a str"),
        (lambda r: r["traces"][0].update(rewards=[1.0]), "rewards that is a list"),
        (lambda r: r["traces"][0].update(metrics=[1.0]), "metrics that is a list"),
        (lambda r: r["traces"][0].update(is_truncated="perhaps"), "is_truncated 'perhaps'; true, false or null"),
        (lambda r: r["traces"][0].update(nodes="a"), "nodes that are no list of objects"),
        (lambda r: r["traces"][0]["nodes"][1].update(parent=7), "a node whose parent is 7; its nodes are 0 to 1"),
        (lambda r: r["traces"][0]["nodes"][1].update(token_ids=5), "token_ids that is a int; a list is needed"),
        (lambda r: r["traces"][0]["nodes"][1].update(token_ids=["a", "b"]), 'token "a" in its response'),
    ],
)
def test_broken_parts_of_an_episode_are_named(change: Callable[..., object], says: str, tmp_path: Path) -> None:
    content = [episode(p, g) for p in range(3) for g in range(4)]
    file = write(tmp_path / "traces.jsonl", [*content[:-1], changed(change)])
    with pytest.raises(UserError, match=f"row 12 has .*{says}"):
        read_groups([file], OWN)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reward": 10**400}, r"reward 1.00e\+400; a finite number is needed \(up to 1e\+12\)"),
        ({"reward": 1e13}, r"reward 1.00e\+13; a finite number"),
        ({"step": 10**400}, r"step 100000000000\.\.\.; a whole number up to 9223372036854775807"),
        ({"truncated": "perhaps"}, "truncated 'perhaps'; true, false or null"),
        ({"stop_reason": ["length"]}, "stop_reason .*; stop, length or another word"),
        ({"reward": -1e200}, r"reward -1.00e\+200; a finite number"),
        ({"reward": "1_0"}, "reward '1_0'; a number is needed"),
        ({"step": float("inf")}, "step inf; a whole number"),
        ({"temperature": -1}, "temperature -1; a number from 0"),
        ({"temperature": "warm"}, "temperature 'warm'; a number is needed"),
        ({"finish_reason": 3}, "finish_reason 3; stop, length or another word"),
        ({"prompt": {"a": 1}}, "a prompt that is a dict; text, token ids or messages"),
        ({"response": 7}, "a response that is a int; text, token ids or messages"),
        ({"response": ["a"]}, 'token "a" in its response'),
        ({"response": [{"role": "assistant", "content": "2", "reasoning_content": "1+1"}]}, "reasoning_content beside"),
        ({"response": [5, 6], "response_mask": [1, "a"]}, "no list of 2 zeros and ones"),
    ],
)
def test_a_row_is_refused_whether_or_not_there_is_a_model(
    change: dict[str, Any], says: str, model: Path, tmp_path: Path
) -> None:
    content = rows()
    file = write(tmp_path / "own.jsonl", [*content[:-1], content[-1] | change])
    with pytest.raises(UserError, match=f"row 12 has .*{says}"):
        encoded(file, model)
    with pytest.raises(UserError, match=f"row 12 has .*{says}"):
        answers(read_groups([file], OWN)[0], OWN, lambda _: 1)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(b"{}", mtime=0), "is gzip"),
        ('{"prompt": 1}'.encode("utf-16"), "is UTF-16"),
        (b'{"reward": ' + b"9" * 5000 + b"}", "row 1 has an integer of more than 4300 digits"),
    ],
)
def test_files_that_are_no_text_are_named(content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_groups([file], OWN)


def test_one_id_in_two_types_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", rows(prompt_id=lambda p, g: p if g % 2 else str(p)))
    with pytest.raises(UserError, match=r"row 2 has the id 0 in another type than .*row 1"):
        read_groups([file], OWN)


@pytest.mark.parametrize(
    "columns",
    [
        {"finish_reason": "LENGTH"},
        {"finish_reason": {"type": "length", "length": 3}},
        {"finish_reason": "abort"},
        {"stop_reason": "max_tokens"},
        {"truncated": True},
        {"is_truncated": 1.0},
        {"finish_reason": "stop", "is_truncated": True},
        {"finish_reason": "length", "truncated": False},
    ],
)
def test_however_a_cut_is_written_no_end_is_added(columns: dict[str, Any], model: Path, tmp_path: Path) -> None:
    _, notes = encoded(write(tmp_path / "own.jsonl", rows(**columns)), model)
    assert (notes.cut + notes.ends_there, notes.ends_added) == (12, 0)


@pytest.mark.parametrize(
    ("columns", "unsure"),
    [
        ({}, 9),
        ({"finish_reason": "stop"}, 0),
        ({"stop_reason": 151645}, 0),
        ({"truncated": lambda p, g: None if g > 1 else False}, 6),
    ],
)
def test_only_responses_of_which_nothing_is_said_may_have_been_cut(
    columns: dict[str, Any], unsure: int, model: Path, tmp_path: Path
) -> None:
    _, notes = encoded(write(tmp_path / "own.jsonl", rows(**columns)), model)
    assert (notes.ends_added, notes.ends_unsure) == (9, unsure)
    assert (f"does not say whether {unsure} of them were cut" in notes.paragraph()) == (unsure > 0)


def test_a_table_of_one_s_own_keeps_its_columns_whatever_else_it_has(model: Path, tmp_path: Path) -> None:
    """`advantage` alone makes no file of TRL, `example_id` none of prime-rl."""
    own = rows(finish_reason="length", temperature="0.7", step=1, advantage=0.5)
    renamed = [{"completion" if key == "response" else key: value for key, value in row.items()} for row in own]
    for number, content in enumerate((renamed, [row | {"example_id": row["prompt_id"]} for row in renamed])):
        found, notes = encoded(write(tmp_path / f"{number}.jsonl", content), model)
        assert [prompt.scored for prompt in found] == [4, 4, 4]
        assert (notes.files[0]["format"], notes.ends_added, notes.temperature) == ("plain table", 0, 0.7)


def test_greedy_responses_are_no_sample(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", rows(temperature=0.0))
    asked = config(model={"name": "pretrained", "path": str(model)}, rollouts=str(file), prompts=None, responses=None)
    with pytest.raises(UserError, match="sampled at temperature 0, always the likeliest token"):
        Imported.of(asked)


def test_a_prompt_that_the_assistant_began_stays_open(chat_model: Path, tmp_path: Path) -> None:
    begun = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2+0="}]
    found, _ = encoded(write(tmp_path / "own.jsonl", rows(1, prompt=begun)), chat_model)
    assert found[0].text.endswith("assistant\n2+0=")


def test_definitions_of_tools_are_part_of_the_prompt(chat_model: Path, tmp_path: Path) -> None:
    message = [{"role": "user", "content": "1+1="}]
    said = [{"role": "assistant", "content": "2"}]
    row = {"example_id": 0, "prompt": message, "completion": said, "reward": 1.0, "tool_defs": [{"name": "add"}]}
    with pytest.raises(UserError, match="row 1 has definitions of tools"):
        encoded(write(tmp_path / "train_rollouts.jsonl", [row, row | {"reward": 0.0}]), chat_model)


def test_decimals_and_whole_floats_are_numbers(model: Path, tmp_path: Path) -> None:
    own = [row | {"response": [5.0, 6.0 + n % 4], "reward": Decimal("0.25")} for n, row in enumerate(rows())]
    file = tmp_path / "own.PARQUET"
    pl.DataFrame(own).write_parquet(file)
    found, _ = encoded(file, model)
    assert found[0].response_ids == [[5, 6], [5, 7], [5, 8], [5, 9]]
    assert found[0].rewards == [0.25] * 4


def test_a_uid_that_is_not_the_trainer_s_parts_nothing(model: Path, tmp_path: Path) -> None:
    content = [
        {"input": f"{p}+1=", "output": str(g), "score": g % 2, "uid": f"gsm8k_test_p{p}"}
        for p in range(3)
        for g in range(4)
    ]
    found, _ = encoded(write(tmp_path / "1.jsonl", content), model)
    assert [prompt.scored for prompt in found] == [4, 4, 4]


@pytest.mark.parametrize("size", [8, 9, 16])
def test_copies_are_found_beside_groups_of_one_answer(size: int, tmp_path: Path) -> None:
    """Eight groups stand there twice; four of one answer each are of another size, or as large as the doubled ones and so doubled too."""
    rng = np.random.default_rng(0)
    doubled = [
        {"prompt_id": p, "prompt": f"{p}+1=", "response": str(rng.integers(10**6)), "reward": 0.0}
        for p in range(8)
        for _ in range(8)
    ]
    same = [
        {"prompt_id": p, "prompt": f"{p}+1=", "response": "2", "reward": 1.0} for p in range(8, 12) for _ in range(size)
    ]
    groups, notes = read_groups([write(tmp_path / "own.jsonl", [*doubled, *doubled, *same])], RewardChoice())
    assert [len(group.records) for group in groups] == [8] * 8 + [8 if size == 16 else size] * 4
    assert sum(notes.left_out.values()) == 64 + (32 if size == 16 else 0)


def test_responses_without_prompt_or_id_make_no_group(tmp_path: Path) -> None:
    content = [
        {"prompt": None if p == 2 else f"{p}+1=", "response": str(g), "reward": g % 2}
        for p in range(3)
        for g in range(4)
    ]
    groups, notes = read_groups([write(tmp_path / "own.jsonl", content)], OWN)
    assert len(groups) == 2
    assert dict(notes.left_out) == {"without a prompt": 4}


def test_json_that_nests_too_deeply_is_text(tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", rows(response=lambda p, g: '[{"a":' * 50_000 + str(g)))
    groups, _ = read_groups([file], OWN)
    assert json.dumps(groups[0].records[0].response).endswith('0"')
