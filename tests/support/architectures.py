"""Random float64 models of many architectures."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from transformers import AutoModelForCausalLM, PreTrainedModel

SHAPE: dict[str, Any] = {
    "vocab_size": 29,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2: dict[str, Any] = {
    "vocab_size": 29,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEPSEEK: dict[str, Any] = SHAPE | {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
}
CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama-tied": lambda: tf.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama": lambda: tf.LlamaConfig(**SHAPE, attention_bias=True),
    "gpt2": lambda: tf.GPT2Config(**GPT2),
    "qwen2": lambda: tf.Qwen2Config(**SHAPE),
    "qwen3": lambda: tf.Qwen3Config(**SHAPE, head_dim=8),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**SHAPE),
    "opt": lambda: tf.OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=16),
    "phi": lambda: tf.PhiConfig(**SHAPE),
    "gemma2": lambda: tf.Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0),
    "gemma3": lambda: tf.Gemma3TextConfig(**SHAPE, head_dim=8),
    "cohere": lambda: tf.CohereConfig(**SHAPE, use_qk_norm=True, logit_scale=0.3),
    "granite": lambda: tf.GraniteConfig(**SHAPE, logits_scaling=3.0),
    "bloom": lambda: tf.BloomConfig(vocab_size=29, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
    "mixtral": lambda: tf.MixtralConfig(**SHAPE, num_local_experts=4),
    "granite-moe": lambda: tf.GraniteMoeConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "olmo2": lambda: tf.Olmo2Config(**SHAPE),
    "falcon-alibi": lambda: tf.FalconConfig(
        vocab_size=29, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, parallel_attn=False
    ),
    "deepseek": lambda: tf.DeepseekV3Config(**DEEPSEEK),
    "gpt-oss": lambda: tf.GptOssConfig(**SHAPE, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
}


def build(name: str) -> PreTrainedModel:
    """A random float64 model of this architecture, every parameter away from its initial value."""
    torch.manual_seed(0)
    extra = (
        {"experts_implementation": "eager"} if name in ("mixtral", "gpt-oss", "granite-moe", "deepseek") else {}
    )  # grouped kernels have no float64
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), **extra).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def rounding(name: str) -> float:
    """Relative error of a Gram matrix computed in another order: RMSNorm of transformers rounds to float32 inside, whatever the model."""
    float64_throughout = name in ("gpt2", "gpt-neox", "opt", "phi", "bloom", "falcon-alibi")
    return 1e-9 if float64_throughout else 4 * torch.finfo(torch.float32).eps
