"""Models and files for tests of rollouts from elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import small_llama

from analysis.study.external import EncodedPrompt, Encoder, Notes, Reader, RewardChoice, encode_groups, read_groups
from opo.model.load import save_model
from opo.model.policy import Policy
from opo.model.tiny import character_tokenizer

DATA = Path(__file__).parents[1] / "analysis" / "study" / "data"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OWN = RewardChoice()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that TRL sampled from in `data`."""
    tokenizer = character_tokenizer()
    folder = tmp_path_factory.mktemp("model")
    save_model(Policy(small_llama(vocabulary=len(tokenizer)), tokenizer, 1.0), folder)
    return folder


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template and a turn's end that is not the end of text."""
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["\n", "system", "user", "assistant"])
    tokenizer.chat_template = CHATML
    folder = tmp_path_factory.mktemp("chat")
    made = small_llama(vocabulary=len(tokenizer))
    made.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<|im_end|>")]  # pyright: ignore[reportOptionalMemberAccess]
    save_model(Policy(made, tokenizer, 1.0), folder)
    return folder


def rows(prompts: int = 3, group: int = 4, **others: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "prompt_id": p,
            "prompt": f"{p}+1=",
            "response": "9" * int(rng.integers(1, 9)) + str(g),
            "reward": float(g % 2),
        }
        | {key: value(p, g) if callable(value) else value for key, value in others.items()}
        for p in range(prompts)
        for g in range(group)
    ]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    return path


def encoded(
    file: Path | list[Path], model: Path, choice: RewardChoice = OWN, steps: list[int] | None = None, **options: Any
) -> tuple[list[EncodedPrompt], Notes]:
    groups, notes = read_groups(file if isinstance(file, list) else [file], choice, steps)
    return encode_groups(groups, choice, Encoder(Reader.of(str(model)), notes, **options)), notes
