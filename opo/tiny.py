"""The built-in policy: a character-level Llama of about a million parameters, warmed up on imperfect demonstrations.

It needs no download and no more than a minute, and comes out the same, bit by bit, for the same recipe: it is made by one thread from
the recipe's seed, then kept in the cache under the recipe's hash.
"""

import random
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from opo.cache import made_once
from opo.config import ModelConfig, TinyConfig
from opo.seeding import seed_for
from opo.tasks.arithmetic import ALPHABET, Arithmetic, ArithmeticConfig

PAD, EOS = "<pad>", "<eos>"


def tiny_folder(config: ModelConfig) -> Path:
    """The folder of the built-in policy for this recipe, made on first use."""
    recipe = {"format": 1, "demonstrations": vars(ArithmeticConfig()), "torch": torch.__version__, **vars(config.tiny)}
    return made_once("tiny", recipe, lambda folder: _make(config.tiny, folder))


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character of the task's alphabet, after padding and end-of-text."""
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=ALPHABET[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)


def tiny_model(config: TinyConfig, vocabulary: int, generator: torch.Generator) -> LlamaForCausalLM:
    """The architecture with weights drawn from `generator`: normal with standard deviation 0.02, ones in the norms."""
    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator))
    return model


def _make(config: TinyConfig, folder: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are then taken in one order on every machine
    try:
        tokenizer = character_tokenizer()
        model = tiny_model(config, len(tokenizer), torch.Generator().manual_seed(seed_for(config.seed, "tiny weights")))
        _warm_up(model, tokenizer, config)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _warm_up(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, config: TinyConfig) -> None:
    """Supervised steps on demonstrations: cross-entropy of the response tokens, linear decay of the rate to zero."""
    task, rng = Arithmetic(ArithmeticConfig()), random.Random(seed_for(config.seed, "tiny demonstrations"))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.warmup_learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    model.train()
    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        bar = progress.add_task("making the built-in policy (once)", total=config.warmup_steps)
        for step in range(config.warmup_steps):
            for group in optimizer.param_groups:
                group["lr"] = config.warmup_learning_rate * min((step + 1) / 20, 1 - step / config.warmup_steps)
            ids_BL, labels_BL = _batch(task.demonstrations(rng, config.warmup_batch), tokenizer)
            loss = model(input_ids=ids_BL, labels=labels_BL, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.update(bar, advance=1)
    model.eval()


def _batch(pairs: list[tuple[str, str]], tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and labels, -100 on prompt and padding (padding follows, so causal attention never sees it)."""
    rows = [(tokenizer.encode(p), [*tokenizer.encode(r), tokenizer.eos_token_id]) for p, r in pairs]
    width = max(len(p) + len(r) for p, r in rows)
    ids = [p + r + [0] * (width - len(p) - len(r)) for p, r in rows]
    labels = [[-100] * len(p) + r + [-100] * (width - len(p) - len(r)) for p, r in rows]
    return torch.tensor(ids), torch.tensor(labels)
