"""Policies from folders, whole and with LoRA, and the built-in one."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import random_rollouts, small_llama

from opo.config.schema import ModelConfig, TinyConfig
from opo.errors import UserError
from opo.model.forward import microbatches
from opo.model.load import load_policy, restore_model, save_model
from opo.model.policy import Policy
from opo.model.tiny import EOS, character_tokenizer, tiny_folder
from opo.system.cache import made_once
from opo.tasks.arithmetic import ALPHABET

QUICK = TinyConfig(hidden_size=64, intermediate_size=96, layers=1, heads=2, warmup_steps=5, warmup_rows=2)


@pytest.fixture
def folder(tmp_path):
    model = small_llama(vocabulary=len(character_tokenizer()))
    save_model(Policy(model, character_tokenizer()), tmp_path / "model")
    return tmp_path / "model"


def scores(policy: Policy) -> torch.Tensor:
    return policy.measure(random_rollouts(), [0, 1, 2, 3]).logprobs_NT


def test_a_folder_loads_and_is_restored_bit_by_bit(folder, tmp_path):
    policy = load_policy(ModelConfig(name="pretrained", path=str(folder)))
    before = scores(policy)
    save_model(policy, tmp_path / "saved")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    assert not torch.equal(scores(policy), before)
    restore_model(policy, tmp_path / "saved")
    assert torch.equal(scores(policy), before)


def test_lora_trains_adapters_alone_and_is_restored(folder, tmp_path):
    policy = load_policy(ModelConfig(name="pretrained", path=str(folder), lora_rank=2))
    whole = load_policy(ModelConfig(name="pretrained", path=str(folder)))
    assert torch.allclose(scores(policy), scores(whole))  # an adapter starts as nothing
    names = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in n for n in names)
    (part,) = microbatches(random_rollouts(), [0, 1, 2, 3], 10_000)
    policy.scores(random_rollouts(), part).logprobs_MT.sum().backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    moved = scores(policy)
    save_model(policy, tmp_path / "adapter")
    fresh = load_policy(ModelConfig(name="pretrained", path=str(folder), lora_rank=2))
    restore_model(fresh, tmp_path / "adapter")
    assert torch.equal(scores(fresh), moved)


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.path=") as caught:
        load_policy(ModelConfig(name="pretrained", path=str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (
            "config.json",
            {"num_hidden_layers": 1},
            r"tensors of layers that config\.json leaves out, the first model\.layers\.1\.",
        ),
        (
            "config.json",
            {"intermediate_size": 8},
            r"down_proj\.weight has the shape \[\d+, \d+\] .* by config\.json \[\d+, 8\]",
        ),
        ("config.json", {"rope_scaling": {"rope_type": "nope"}}, r"config\.json: rope_scaling\.rope_type='nope'"),
        ("generation_config.json", {"eos_token_id": ["a"]}, r"generation_config\.json: eos_token_id=\['a'\]"),
        ("generation_config.json", [], r"generation_config\.json holds no JSON object"),
        ("tokenizer_config.json", [], r"tokenizer_config\.json holds no JSON object"),
        (
            "config.json",
            {"num_hidden_layers": 0},
            r"its weights hold \d+ tensors of layers that config\.json leaves out",
        ),
        ("config.json", {"num_hidden_layers": -1}, r"tensors of layers that config\.json leaves out"),
        ("config.json", {"dtype": "banana"}, r"config\.json cannot be used: AttributeError: .*banana"),
        ("config.json", {"num_attention_heads": 0}, r"config\.json.* cannot be used: ZeroDivisionError"),
        ("config.json", {"max_position_embeddings": 0}, r"config\.json: positions for 0 tokens"),
        ("config.json", {"rms_norm_eps": -9.0}, r"its logits are no finite numbers"),
        ("config.json", {"eos_token_id": -1}, r"config\.json: eos_token_id=-1; allowed are numbers of the model's"),
        ("generation_config.json", {"eos_token_id": [10**9]}, r"generation_config\.json: eos_token_id=\[1000000000\]"),
        (
            "config.json",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": -1}},
            r"config\.json: its rotary positions turn backwards",
        ),
        ("tokenizer_config.json", {"model_max_length": "x"}, r"its tokenizer .* cannot be used: TypeError"),
        ("tokenizer.json", {"added_tokens": None}, r"its tokenizer \(tokenizer\.json .* cannot be used"),
    ],
)
def test_files_that_do_not_fit_are_named(folder, file, change, said):
    before = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(before | change if isinstance(change, dict) else change))
    with pytest.raises(UserError, match=said) as caught:
        load_policy(ModelConfig(name="pretrained", path=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["model.layers.9.rotary_emb.inv_freq", "v_head.weight", "vision.layers.9.mlp.down_proj.weight"]
)
def test_tensors_of_no_layer_of_the_model_may_be_beside_it(folder, name):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {name: torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    load_policy(ModelConfig(name="pretrained", path=str(folder)))


@pytest.mark.parametrize(
    "name", ["lm_head.bias", "model.layers.0.self_attn.q_proj.bias", "model.layers.1.lora_A.weight"]
)
def test_tensors_that_a_part_of_the_model_would_lose_are_named(folder, name):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {name: torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"hold 1 tensors .* the first {name}"):
        load_policy(ModelConfig(name="pretrained", path=str(folder)))


def test_a_pipe_in_place_of_a_file_is_named_and_not_read(folder):
    (folder / "tokenizer_config.json").unlink()
    os.mkfifo(folder / "tokenizer_config.json")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is no file"):
        load_policy(ModelConfig(name="pretrained", path=str(folder)))


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors"])
def test_json_without_end_is_one_line(folder, damaged):
    deep = b"[" * 200_000
    header = len(deep).to_bytes(8, "little") if damaged == "model.safetensors" else b""
    (folder / damaged).write_bytes(header + deep)
    with pytest.raises(UserError, match=r"cannot be read as JSON|has no readable header"):
        load_policy(ModelConfig(name="pretrained", path=str(folder)))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("generation_config.json", {"temperature": 0.0, "do_sample": True}),
        ("generation_config.json", {"temperature": "hot"}),
        ("config.json", {"output_attentions": True}),
        ("config.json", {"return_dict": False}),
    ],
)
def test_what_a_config_asks_of_other_uses_neither_stops_nor_changes_this_one(folder, tmp_path, file, change):
    plain = scores(load_policy(ModelConfig(name="pretrained", path=str(folder))))
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    policy = load_policy(ModelConfig(name="pretrained", path=str(folder)))
    assert torch.equal(scores(policy), plain)
    save_model(policy, tmp_path / "saved")
    restore_model(policy, tmp_path / "saved")
    assert policy.model.generation_config.eos_token_id == json.loads(
        (folder / "generation_config.json").read_text()
    ).get("eos_token_id")


def test_characters_survive_the_tokenizer():
    tokenizer = character_tokenizer()
    ids = tokenizer.encode(ALPHABET + EOS)
    assert len(ids) == len(ALPHABET) + 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == ALPHABET


def test_the_built_in_policy_is_the_same_bits_for_the_same_seed(tmp_path, monkeypatch):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        monkeypatch.setenv("OPO_CACHE", str(tmp_path / name))
        config = TinyConfig(**{**vars(QUICK), "seed": seed})
        made = tiny_folder(ModelConfig(tiny=config))
        assert tiny_folder(ModelConfig(tiny=config)) == made  # made once
        weights.append((made / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_one_of_two_makers_makes_and_what_a_killed_one_left_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("OPO_CACHE", str(tmp_path))
    made: list[Path] = []

    def make(folder):
        made.append(folder)
        time.sleep(0.3)  # the other comes in the meantime
        (folder / "file").write_text("whole")

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: made_once("kind", {}, make), range(2))
    assert (one, len(made)) == (other, 1)
    shutil.rmtree(one)
    left = tmp_path / f".{one.name}.1.partial"
    left.mkdir()
    assert made_once("kind", {}, make) == one
    assert {path.name for path in tmp_path.iterdir()} == {one.name, f".{one.name}.lock"}
