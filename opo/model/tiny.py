"""The built-in policy: a character-level Llama of about a million parameters, warmed up on imperfect demonstrations.

It needs no download and takes less than a minute to make. The same recipe gives the same weights, bit by bit: one
thread trains it from the recipe's seed, and it is cached under the recipe's hash.
"""

import hashlib
import random
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from opo.config.schema import ModelConfig, TinyConfig
from opo.system.cache import made_once
from opo.system.seeding import seed_for
from opo.tasks.arithmetic import ALPHABET, Arithmetic, ArithmeticConfig

PAD, EOS = "<pad>", "<eos>"
WIDTH = 96  # tokens of a row of demonstrations


def tiny_folder(config: ModelConfig) -> Path:
    """The folder of the built-in policy for this recipe, made on first use."""
    # hash a sample of the demonstrations, so that a change to the task makes a new policy
    sample = repr(Arithmetic(ArithmeticConfig()).demonstrations(random.Random(0), 256))
    shown = hashlib.sha256(sample.encode()).hexdigest()
    recipe = {"format": 2, "demonstrations": shown, "torch": torch.__version__, **vars(config.tiny)}
    return made_once("tiny", recipe, lambda folder: _make(config.tiny, folder))


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character of the task's alphabet, after padding and end-of-text."""
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=ALPHABET[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)


def tiny_shape(config: TinyConfig, vocabulary: int) -> LlamaConfig:
    """The architecture."""
    return LlamaConfig(
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


def tiny_model(config: TinyConfig, vocabulary: int, generator: torch.Generator) -> LlamaForCausalLM:
    """The architecture with weights drawn from `generator`: normal, ones in the norms."""
    model = LlamaForCausalLM(tiny_shape(config, vocabulary))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, config.init_std, generator=generator))
    return model


def _make(config: TinyConfig, folder: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that sums are taken in the same order on every machine
    try:
        tokenizer = character_tokenizer()
        model = tiny_model(config, len(tokenizer), torch.Generator().manual_seed(seed_for(config.seed, "tiny weights")))
        _warm_up(model, tokenizer, config)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _warm_up(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, config: TinyConfig) -> None:
    """Supervised steps on demonstrations: cross-entropy of the response tokens, short ramp, linear decay of the rates to zero.

    Muon for the matrices inside, AdamW for the rest: on this task several times fewer steps than AdamW alone.
    """
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for p in model.parameters() if not any(p is q for q in inside)]
    optimizers = [
        torch.optim.Muon(inside, lr=config.warmup_muon_rate, weight_decay=0.0, momentum=0.9),
        torch.optim.AdamW(others, lr=config.warmup_adamw_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rows = _Rows(tokenizer, random.Random(seed_for(config.seed, "tiny demonstrations")))
    model.train()
    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        bar = progress.add_task("making the built-in policy (once)", total=config.warmup_steps)
        for step in range(config.warmup_steps):
            factor = min((step + 1) / 50, 1 - step / config.warmup_steps)
            for optimizer, rate in zip(optimizers, (config.warmup_muon_rate, config.warmup_adamw_rate), strict=True):
                optimizer.param_groups[0]["lr"] = rate * factor
            model(**rows.batch(config.warmup_rows), use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            progress.update(bar, advance=1)
    model.eval()


class _Rows:
    """Demonstrations packed into rows of `WIDTH` tokens, each attending to itself alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self.tokenizer, self.rng = tokenizer, rng
        self.task = Arithmetic(ArithmeticConfig())
        self.waiting: list[tuple[list[int], list[int]]] = []

    def batch(self, count: int) -> dict[str, torch.Tensor]:
        """Ids, labels (-100 outside responses), positions within each demonstration, and the block-diagonal causal mask."""
        ids, positions, owners = (torch.zeros(count, WIDTH, dtype=torch.int64) for _ in range(3))
        labels = torch.full((count, WIDTH), -100)
        for row in range(count):
            at, owner = 0, 1
            while at + len(self._next()[0]) + len(self._next()[1]) <= WIDTH:
                prompt, response = self.waiting.pop()
                end = at + len(prompt) + len(response)
                ids[row, at:end] = torch.tensor(prompt + response)
                labels[row, at + len(prompt) : end] = torch.tensor(response)
                positions[row, at:end] = torch.arange(end - at)
                owners[row, at:end] = owner
                at, owner = end, owner + 1
        mask = (owners[:, :, None] == owners[:, None, :]) & torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril()
        return {"input_ids": ids, "labels": labels, "position_ids": positions, "attention_mask": mask[:, None]}

    def _next(self) -> tuple[list[int], list[int]]:
        if not self.waiting:
            pairs = self.task.demonstrations(self.rng, 512)
            self.waiting = [(self._ids(prompt), [*self._ids(response), self._eos()]) for prompt, response in pairs]
        return self.waiting[-1]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def _eos(self) -> int:
        assert isinstance(self.tokenizer.eos_token_id, int)
        return self.tokenizer.eos_token_id
