"""Models that cannot be used are refused by their files, in one line, before any weight is read; no code of theirs is run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import small_gpt2
from transformers import BertConfig, BertModel, T5Config, T5Model

from opo.config.model_source import complaints
from opo.config.schema import ModelConfig
from opo.errors import UserError
from opo.model.load import load_policy, save_model
from opo.model.policy import Policy
from opo.model.tiny import character_tokenizer
from opo.run.checkpoint import save_checkpoint
from opo.run.policies import evaluated_policies

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(Policy(small_gpt2(vocabulary=len(character_tokenizer())), character_tokenizer()), tmp_path / "model")
    return tmp_path / "model"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-7])


def pickled(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def own_code(folder: Path) -> None:
    change(folder / "config.json", model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Mine"})
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def missing_shard(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    table = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(table))


BY_FILES = {
    "config.json cannot be read as JSON": lambda f: (f / "config.json").write_text('{"model_type": '),
    "model.safetensors is damaged: ": cut,
    "model.safetensors is cut short": lambda f: (f / WEIGHTS).write_bytes(b"\xff\xff\xff\xff"),
    "has no model.safetensors": lambda f: (f / WEIGHTS).unlink(),
    "its weights are pickled": pickled,
    "code of its own (auto_map), which is never run": own_code,
    "model-00002-of-00002.safetensors is missing": missing_shard,
}


@pytest.mark.parametrize("said", BY_FILES)
def test_every_command_refuses_a_broken_folder_in_the_same_words(folder: Path, said: str) -> None:
    BY_FILES[said](folder)
    (line,) = complaints(folder, f"model.path={folder}")
    assert said in line
    with pytest.raises(UserError) as loading:
        load_policy(ModelConfig("pretrained", str(folder)))
    with pytest.raises(UserError) as naming:
        evaluated_policies(None, ModelConfig("pretrained", str(folder)))
    assert str(loading.value) == str(naming.value) == line
    assert "\n" not in line
    assert not (folder / "ran").exists()


def test_what_only_loading_shows_is_one_line_too(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder, pair = tmp_path / "encoder", tmp_path / "pair"
    shape = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    BertModel(shape).save_pretrained(encoder)
    character_tokenizer().save_pretrained(encoder)
    with pytest.raises(UserError, match=r"its weights lack \d tensors of the model, the first cls\."):
        load_policy(ModelConfig("pretrained", str(encoder)))
    T5Model(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(pair)
    with pytest.raises(UserError, match="a t5 model; allowed are causal language models"):
        load_policy(ModelConfig("pretrained", str(pair)))
    assert capfd.readouterr().err == ""
    weights = load_file(folder / WEIGHTS)
    name = "transformer.h.0.mlp.c_fc.weight"
    save_file({k: v for k, v in weights.items() if k != name}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=rf"its weights lack 1 tensors of the model, the first {name}"):
        load_policy(ModelConfig("pretrained", str(folder)))
    weights[name][0, 0] = torch.nan
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=rf"{name} holds a weight that is no finite number"):
        load_policy(ModelConfig("pretrained", str(folder)))


def test_a_bit_that_flipped_in_a_checkpoint_is_seen_by_whoever_reads_it(folder: Path, tmp_path: Path) -> None:
    def copy(to: Path) -> None:
        shutil.copytree(folder, to, dirs_exist_ok=True)

    saved = save_checkpoint(tmp_path / "checkpoints", 3, copy, {}, {})
    (found,) = evaluated_policies(str(saved), None)
    load_policy(found.weights[0].source)
    data = bytearray((saved / "policy" / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (saved / "policy" / WEIGHTS).write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged, its SHA-256 is not the manifest's"):
        load_policy(found.weights[0].source)
