"""Load a policy: the built-in one, SmolLM2 from its package, a folder or a hub id; whole or with LoRA."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from opo.config.schema import ModelConfig
from opo.errors import UserError
from opo.model.liger import check_liger
from opo.model.policy import Policy
from opo.model.smollm2 import smollm2_folder
from opo.model.tiny import tiny_folder

disable_progress_bar()  # its bars would break the progress line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def model_source(config: ModelConfig) -> str:
    """The folder or hub id that transformers loads; makes the built-in policy or converts SmolLM2 on first use."""
    if config.path is not None:
        return config.path
    if config.name == "tiny":
        return str(tiny_folder(config))
    if config.name == "smollm2":
        return str(smollm2_folder())
    raise UserError(f"model.path: model.name={config.name} needs a folder or a hub id")


def load_policy(config: ModelConfig, temperature: float = 1.0, device: str = "auto") -> Policy:
    """The policy in evaluation mode. Dropout stays off in training too: the policy that is trained must be the one that samples.

    Raises UserError where the model or its tokenizer cannot be found or is no causal language model.
    """
    source = model_source(config)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[config.dtype])
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={source}: {str(error).splitlines()[0]}") from error
    if config.lora_rank:
        from peft import LoraConfig, get_peft_model

        targets = config.lora_targets if isinstance(config.lora_targets, str) else list(config.lora_targets)
        lora = LoraConfig(
            r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=targets, task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, lora)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = Policy(
        model.to(device).eval(), tokenizer, temperature, compute=config.compute, head_kernel=config.head_kernel
    )
    if config.head_kernel == "liger":
        check_liger(policy.head)
    return policy


def max_length(model: PreTrainedModel | Any) -> int:
    """The largest number of tokens the model has positions for."""
    return int(getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", 2**20))


def save_model(policy: Policy, folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer so that `from_pretrained` loads them."""
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def restore_model(policy: Policy, folder: Path) -> None:
    """Put the weights that `save_model` wrote back into the policy, bit by bit."""
    if hasattr(policy.model, "get_base_model"):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(policy.model, load_peft_weights(str(folder), device=str(policy.model.device)))
    else:
        saved = AutoModelForCausalLM.from_pretrained(folder, dtype=policy.model.dtype)
        policy.model.load_state_dict(saved.state_dict())
