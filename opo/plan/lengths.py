"""How long prompts are, without loading a model: by its tokenizer and the task's first prompts, where both are on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from opo.config.schema import ModelConfig
from opo.errors import UserError
from opo.model.packaged import PACKAGED, packaged_at_hand
from opo.model.tiny import character_tokenizer
from opo.rollout.collect import encode_prompt
from opo.tasks import make_task, render

LOOKED_AT = 16  # prompts
ASSUMED = 256  # tokens


def prompt_length(
    given: int | None, model: ModelConfig, task: Any, rewards: Mapping[str, float] | None, split: str = "train"
) -> tuple[int, str]:
    """Tokens of the longest of the first prompts, and how they are known, in words."""
    if given is not None:
        return given, "given"
    try:
        tokenizer = _tokenizer(model)
        made = make_task(task, rewards) if tokenizer is not None else None
    except (UserError, OSError, ValueError):  # a file that is elsewhere: its prompts cannot be read here
        tokenizer = made = None
    if tokenizer is None or made is None:
        return ASSUMED, "assumed: task or tokenizer are not on this machine"
    prompts = [made.prompt(index, split) for index in range(LOOKED_AT)]
    return max(len(encode_prompt(tokenizer, render(p, tokenizer), p.chat)) for p in prompts), f"of {LOOKED_AT} prompts"


def _tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase | None:
    """The policy's, where no download is needed."""
    if model.name == "tiny":
        return character_tokenizer()
    packaged = model.name in PACKAGED
    folder = packaged_at_hand(model.name) if packaged else Path(str(model.path)).expanduser()
    return AutoTokenizer.from_pretrained(str(folder)) if folder is not None and folder.is_dir() else None
