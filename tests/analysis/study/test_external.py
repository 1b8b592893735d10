"""Rollouts from elsewhere: each format on a file that its trainer wrote or writes, damaged files, copies, steps, ends, templates."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from foreign import DATA, OWN, chat_model, encoded, model, rows, write
from small import small_llama
from studies import config

from analysis.study.config import VarianceConfig
from analysis.study.external import Reader, RewardChoice, read_groups
from analysis.study.external.imported import Imported
from analysis.study.pools import PromptPool
from analysis.study.result import load
from analysis.study.run import measure, run_study
from opo.errors import UserError
from opo.model.load import save_model
from opo.model.policy import Policy
from opo.model.tiny import character_tokenizer

__all__ = ["chat_model", "model"]  # fixtures


def asked(own: Path, files: Any, **changes: Any) -> VarianceConfig:
    values = {
        "model": {"name": "pretrained", "path": str(own)},
        "rollouts": files,
        "group_sizes": [2, 4],
        "estimators": ["leave_one_out", "length_weighted"],
        "num_bootstrap": 200,
        "threads": 1,
        "prompts": None,
        "responses": None,
    }
    return config(**(values | changes))


def measured(own: Path, files: Any, folder: Path, **changes: Any) -> tuple[dict[str, Any], list[PromptPool]]:
    """The pools of a study and what it says of the import."""
    given = asked(own, files, **changes)
    imported = Imported.of(given)
    given = imported.bounded(given)
    measure(given, folder, imported)
    pools = [PromptPool.load(file) for file in sorted((folder / "pools" / "model").glob("*.npz"))]
    return imported.told(pools, 1.0), pools


def test_files_of_trl(model: Path, tmp_path: Path) -> None:
    """Three files of one run: the second is the first one's batch again; the responses fit the model that sampled them, and no other."""
    files = [DATA / f"completions_{step:05d}.parquet" for step in (1, 2, 3)]
    with pytest.raises(UserError, match=r"could be the reward: share_of_digits, brevity; name it with reward\.column"):
        read_groups(files, OWN)
    choice = RewardChoice(columns={"share_of_digits": 1.0, "brevity": 0.5})
    with pytest.raises(UserError, match=r"has steps 1, 3, each of another policy; step=3 takes"):
        read_groups(files, choice)
    values: dict[str, Any] = {"reward": {"columns": {"share_of_digits": 1.0, "brevity": 0.5}}, "step": "all"}
    values["rollout"] = {"max_new_tokens": 12}
    said, pools = measured(model, list(map(str, files)), tmp_path / "own", **values)
    # TRL trained on the rest of the sum where share_of_digits was null; here such a response has no reward
    assert said["left_out"] == {"of groups that stand there twice (copies)": 32, "without a reward": 2}
    assert (said["prompts"], said["responses"], said["steps"]) == (8, 62, [1, 3])
    assert said["fit"]["p_value"] > 0.001
    assert said["gap_nats"] is None
    assert said["cut"] > 20
    assert "gap to this model: unknown" in said["text"]
    table = pl.concat([pl.read_parquet(file) for file in (files[0], files[2])])
    whole = np.array([len(pool.rewards_R) == 8 for pool in pools])
    assert whole.sum() == 6
    advantages = table["advantage"].to_numpy().reshape(-1, 8)[whole]
    rewards = np.stack([pool.rewards_R for pool in pools if len(pool.rewards_R) == 8])
    again = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(again, advantages, atol=1e-4)  # the very advantages that TRL wrote beside them
    other = tmp_path / "other"
    save_model(Policy(small_llama(seed=7, vocabulary=len(character_tokenizer())), character_tokenizer(), 1.0), other)
    unlike, _ = measured(other, list(map(str, files)), tmp_path / "unlike", **values)
    assert unlike["fit"]["p_value"] < 1e-6
    assert "hardly sampled from this model" in unlike["text"]


def test_a_file_by_the_writer_of_verl(model: Path, tmp_path: Path) -> None:
    """`RayPPOTrainer._log_rollout_data` of verl 0.9.1 on a batch in mixed order: groups, rewards and ends, and damaged copies of it."""
    file = DATA / "verl" / "3.jsonl"
    table = pl.read_ndjson(file)
    found, notes = encoded(file, model, limit=12)
    assert [prompt.scored for prompt in found] == [8] * 12
    assert (notes.steps, notes.files[0]["format"]) == ([3], "verl rollouts")
    assert notes.reward == "as the format has it"
    by_input = {prompt.text: prompt for prompt in found}
    for text, group in table.group_by("input", maintain_order=True):
        assert by_input[str(text[0])].rewards == group["score"].to_list()
        assert by_input[str(text[0])].texts == group["output"].to_list()
    assert notes.cut == sum(len(text) >= 12 for text in table["output"])
    parts = RewardChoice(columns={"acc": 1.0, "format": 0.5})
    found, _ = encoded(file, model, parts, limit=12)
    assert found[0].rewards == [
        a + 0.5 * f for a, f in table.filter(input=found[0].text).select("acc", "format").rows()
    ]
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for damage, says in {
        "".join(lines)[:-40]: "row 96",
        "".join(lines).replace('"score": 1.0', '"score": Infinity', 1): "a finite number is needed",
        "".join(lines).replace('"score": 1.0', '"score": {"a": 1}', 1): "in parts",
        "".join(lines).replace('"score"', '"scores"'): "column prompt is missing",
        "": "no rows|empty",
    }.items():
        broken = tmp_path / "broken.jsonl"
        broken.write_text(damage, encoding="utf-8")
        with pytest.raises(UserError, match=says):
            encoded(broken, model)


def test_a_batch_written_twice_is_dropped_and_repeats_that_are_real_stay(model: Path, tmp_path: Path) -> None:
    content = rows(prompts=4, group=8)
    twice = write(tmp_path / "twice.jsonl", content + content)
    found, notes = encoded(twice, model)
    assert [prompt.scored for prompt in found] == [8] * 4
    assert notes.left_out == {"of groups that stand there twice (copies)": 32}
    short = write(tmp_path / "short.jsonl", rows(prompts=4, group=8, response=lambda p, g: str(g // 4)))
    found, notes = encoded(short, model)
    assert [prompt.scored for prompt in found] == [8] * 4
    assert not notes.left_out


def test_evaluation_rows_in_a_file_of_trl_do_not_join_the_groups(model: Path, tmp_path: Path) -> None:
    table = pl.read_parquet(DATA / "completions_00001.parquet")
    pl.concat([table, table[::8]]).write_parquet(tmp_path / "mixed.parquet")
    found, notes = encoded(tmp_path / "mixed.parquet", model, RewardChoice("brevity"))
    assert [len(prompt.rewards) for prompt in found] == [8] * 4
    assert notes.left_out["outside the groups of training (rows of an evaluation?)"] == 4


def test_null_and_nan_rewards_are_left_out_and_prompts_too_short_with_them(model: Path, tmp_path: Path) -> None:
    content = rows(prompts=4, group=8)
    for n in (0, 9, 10, 11, 12, 13, 14):
        content[n]["reward"] = None if n else float("nan")
    found = run_study(asked(model, str(write(tmp_path / "r.jsonl", content))), tmp_path / "study")
    assert found is not None
    said = found.imported
    assert said is not None
    assert load(tmp_path / "study").imported == said
    assert found.policies[0]["gap_nats"] is None
    assert found.policies[0]["prompts_at"] == {"2": 3, "4": 2}
    assert said["left_out"] == {"without a reward": 7}
    assert said["prompts_left_out"] == {"with fewer than 4 scored responses": 1}
    assert (said["prompts"], said["responses"]) == (3, 23)


def test_ends_are_added_once_and_never_where_a_response_was_cut(model: Path, tmp_path: Path) -> None:
    content = rows(prompts=1, group=4)
    content[0]["response"] = "9<eos>"
    content[1]["finish_reason"] = "length"
    file = write(tmp_path / "r.jsonl", content)
    (prompt,), notes = encoded(file, model)
    assert [ids[-1] == 1 for ids in prompt.response_ids] == [True, False, True, True]
    assert prompt.response_ids[0].count(1) == 1
    assert (notes.ends_there, notes.cut, notes.ends_added) == (1, 1, 2)
    (prompt,), notes = encoded(file, model, append_eos=False)
    assert notes.ends_added == 0
    ids = [r | {"prompt": [3, 4], "response": [5, 6], "logprobs": [-1.0, -2.0]} for r in content]
    (prompt,), _ = encoded(write(tmp_path / "ids.jsonl", ids), model)
    assert (prompt.prompt_ids, prompt.response_ids[0], prompt.logprobs[0]) == ([3, 4], [5, 6], [-1.0, -2.0])


def test_messages_go_through_the_template_and_a_template_without_markers_is_put_back(
    chat_model: Path, tmp_path: Path
) -> None:
    reader = Reader.of(str(chat_model))
    chat = [{"role": "system", "content": "add"}, {"role": "user", "content": "3+4="}]
    expected = reader.tokenizer.encode(
        "<|im_start|>system\nadd<|im_end|>\n<|im_start|>user\n3+4=<|im_end|>\n<|im_start|>assistant\n",
        add_special_tokens=False,
    )
    said = [{"role": "assistant", "content": "7"}]
    stripped = "system\nadd\nuser\n3+4=\nassistant\n"
    for n, (prompt, response) in enumerate([(chat, said), (json.dumps(chat), json.dumps(said)), (stripped, "7")]):
        file = write(tmp_path / f"{n}.jsonl", rows(prompts=1, prompt=prompt, response=response))
        (found,), notes = encoded(file, chat_model)
        assert found.prompt_ids == expected
        end = reader.tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert found.response_ids[0] == [*reader.tokenizer.encode("7", add_special_tokens=False), end]
    assert notes.prompt_form == {"text of a chat template without its markers, put back and checked": 1}
    odd = write(tmp_path / "odd.jsonl", rows(prompts=1, prompt="assistant\nuser\n3+4=\nassistant\n"))
    assert any("template without its markers" in warning for warning in encoded(odd, chat_model)[1].warnings)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"reward": {"a": 1.0}}, r"row 1 has reward in parts \(a\)"),
        ({"reward": float("inf")}, r"row 1 has reward Infinity"),
        ({"reward": "good"}, r"row 1 has reward 'good'"),
        ({"response": 7}, r"row 1 has a response that is a int"),
        ({"response": [3, 10**6]}, r"row 1 has token 1000000 in its response; the vocabulary of .* is 0 to"),
        ({"response": [3, -1]}, r"row 1 has token -1"),
        ({"response": "\ud800"}, r"row 1 has half (of )?a surrogate pair"),
        ({"logprobs": "x"}, r"row 1 has logprobs that are no list of numbers"),
        ({"logprobs": [0.3]}, r"row 1 has a log-probability of 0\.3"),
        ({"response": [3], "logprobs": [-1.0, -1.0]}, r"row 1: 2 log-probabilities, 1 tokens"),
        ({"response": "9" * 300}, r"row 1: prompt and response have 4 \+ 301 = 305 tokens; .* has 64 positions"),
        ({"prompt": [{"role": "user", "content": "1"}], "prompt_id": 9}, r"has no chat template"),
        ({"prompt": "ÄÖÜ", "prompt_id": 9, "response": "ÄÖÜ"}, r"do not survive the tokenizer"),
        ({"prompt": "7"}, r"has another prompt than .*row 1, but the same id 0"),
    ],
)
def test_bad_rows_are_named(change: dict[str, Any], complaint: str, model: Path, tmp_path: Path) -> None:
    content = rows()
    content[0] = content[0] | change
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in content))
    with pytest.raises(UserError, match=complaint) as caught:
        encoded(file, model)
    assert "\n" not in str(caught.value)


def test_lines_end_at_a_line_feed_alone(model: Path, tmp_path: Path) -> None:
    content = [json.dumps(row | {"x": "a\u2028b\u0085"}, ensure_ascii=False) for row in rows()]
    file = tmp_path / "r.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(content).encode())
    plain = encoded(write(tmp_path / "plain.jsonl", rows()), model)[0]
    assert encoded(file, model)[0] == plain
    for damage, complaint in (
        (lambda data: data[:-9], "row 23 is not JSON"),
        (lambda data: data.replace(b"\xc2\x85", b"\x85"), "row 1 is not UTF-8"),
        (lambda data: b"[1]\n" + data.removeprefix(b"\xef\xbb\xbf"), "row 1 is a list"),
        (lambda data: b"", "has no rows"),
    ):
        (tmp_path / "bad.jsonl").write_bytes(damage(file.read_bytes()))
        with pytest.raises(UserError, match=complaint):
            encoded(tmp_path / "bad.jsonl", model)
    (tmp_path / "bad.parquet").write_bytes((DATA / "completions_00001.parquet").read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read as parquet"):
        encoded(tmp_path / "bad.parquet", model)


def test_a_path_is_a_path(model: Path, tmp_path: Path) -> None:
    for name, group in (("a[bc].parquet", 4), ("ab.parquet", 3)):
        pl.DataFrame(rows(group=group)).write_parquet(tmp_path / name)
    assert len(encoded(tmp_path / "a[bc].parquet", model)[0][0].rewards) == 4
    (tmp_path / "step=3").mkdir()
    pl.DataFrame(rows()).write_parquet(tmp_path / "step=3" / "r.parquet")
    assert encoded(tmp_path / "step=3" / "r.parquet", model)[1].steps == []


def test_weights_that_changed_under_the_pools_are_named(model: Path, tmp_path: Path) -> None:
    copied = tmp_path / "model"
    save_model(Policy(small_llama(vocabulary=len(character_tokenizer())), character_tokenizer(), 1.0), copied)
    file = write(tmp_path / "r.jsonl", rows(group=8))
    measured(copied, str(file), tmp_path / "study")
    measured(copied, str(file), tmp_path / "study")
    changed = small_llama(seed=1, vocabulary=len(character_tokenizer()))
    save_model(Policy(changed, character_tokenizer(), 1.0), copied)
    with pytest.raises(UserError, match=r"model\.safetensors has changed since the pools of .* were measured"):
        measured(copied, str(file), tmp_path / "study")
    write(file, rows(group=8, reward=1.0))
    with pytest.raises(UserError, match=r"r\.jsonl has changed since"):
        measured(copied, str(file), tmp_path / "study")


def test_log_probabilities_of_the_file_give_the_gap(model: Path, tmp_path: Path) -> None:
    content = rows(group=8, response=lambda p, g: [3 + g, 4], prompt=[5, 6], logprobs=[-1.0, -2.0])
    content[0]["logprobs"] = None
    said, pools = measured(model, str(write(tmp_path / "r.jsonl", content)), tmp_path / "study")
    assert said["with_logprobs"] == 23
    for pool, given in zip(pools, (7, 8, 8), strict=True):
        assert pool.gap_nats > 0.1
        assert given <= len(pool.rewards_R)
    assert said["gap_nats"] == pytest.approx(np.mean([pool.gap_nats for pool in pools]))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": None}, r"model: rollouts=.* has to be named.*opo audit rollouts="),
        ({"task": {"name": "arithmetic"}}, r"task: rollouts from a file bring their own"),
        ({"split": "train"}, r"split=train: rollouts from a file have no splits"),
        (
            {"group_sizes": [8]},
            r"the prompts have 8 at most; group_sizes from 8 .* group_sizes=\[4\] is the largest possible",
        ),
        ({"prompts": 2, "first_prompt": 2}, r"first_prompt=2: leaves 1 of 3 prompts"),
        ({"reward": {"column": "rewards"}}, r"reward\.column: .* has no column rewards \(did you mean reward\?\)"),
        ({"step": 3}, r"step=3: .* has no such step; it has none"),
    ],
)
def test_keys_beside_rollouts_act_or_are_refused(
    changes: dict[str, Any], complaint: str, model: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "r.jsonl", rows(group=8))
    with pytest.raises(UserError, match=complaint):
        measured(model, str(file), tmp_path / "study", **changes)
