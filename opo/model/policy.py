"""The policy: a causal language model, its tokenizer and its temperature, with log-probabilities of sampled responses."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from opo.batch import Rollouts
from opo.model.forward import Microbatch, decoder_of, microbatches, response_hidden
from opo.model.liger import liger_logprobs
from opo.model.logprobs import Head, token_logprobs
from opo.model.precision import computing
from opo.names import Compute, HeadKernel
from opo.system.world import World


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities, entropies (nats) and logit energies of a part's response tokens, (M, T), zero outside the responses."""

    logprobs_MT: Tensor
    entropies_MT: Tensor
    energies_MT: Tensor | None  # 1 - 2 pi + sum pi^2, the squared norm of d log pi / d logits
    mask_MT: Tensor


@dataclass(frozen=True)
class BatchScores:
    """The same of a whole batch, (N, T) float64 on the CPU, zero outside the responses that were measured."""

    logprobs_NT: Tensor
    entropies_NT: Tensor
    energies_NT: Tensor | None = None

    @classmethod
    def zeros(cls, rollouts: Rollouts) -> Self:
        """Of nothing measured yet, for `place`."""
        zeros_NT = torch.zeros(rollouts.mask_NT.shape, dtype=torch.float64)
        return cls(zeros_NT, zeros_NT.clone(), zeros_NT.clone())

    def place(self, part: Microbatch, scores: TokenScores) -> None:
        """Write a part's scores at its rows."""
        width = scores.mask_MT.shape[1]
        self.logprobs_NT[part.rows_M, :width] = scores.logprobs_MT.detach().double().cpu()
        self.entropies_NT[part.rows_M, :width] = scores.entropies_MT.detach().double().cpu()
        if self.energies_NT is not None and scores.energies_MT is not None:
            self.energies_NT[part.rows_M, :width] = scores.energies_MT.double().cpu()

    def plus(self, first: "BatchScores", rollouts: Rollouts) -> "BatchScores":
        """With the scores of other prompts, which `first` has at the first of equal responses alone."""
        rows = rollouts.first_N
        return BatchScores(
            self.logprobs_NT + first.logprobs_NT[rows], self.entropies_NT + first.entropies_NT[rows], self.energies_NT
        )


@dataclass(frozen=True)
class Policy:
    """What is trained. The temperature is part of it: logits are divided by it here as in the sampler."""

    model: Any  # a causal model of transformers, or peft's wrapper around one
    tokenizer: PreTrainedTokenizerBase
    temperature: float = 1.0
    compute: Compute = "float32"
    head_kernel: HeadKernel = "tiled"
    token_budget: int = 16384  # padded tokens of prompt and response in one forward and backward pass
    shared_prefix: bool = True  # encode each prompt once for all of its responses
    world: World = field(default_factory=World)  # the ranks that share the work of its passes

    @property
    def decoder(self) -> Any:
        """The model without its head."""
        return decoder_of(self.causal_lm)

    @property
    def causal_lm(self) -> Any:
        """The transformers model itself, without peft's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @cached_property
    def head(self) -> Head:
        """From hidden states to logits; its tensors are the model's own, so they follow its updates."""
        return Head.of(self.causal_lm)

    def take(self, model: Any) -> None:
        """The weights of what `whole` gave, after they were changed there."""

    def add_gradients(self) -> None:
        """Sum the gradients over the ranks."""
        self.world.add_gradients(self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def scores(
        self,
        rollouts: Rollouts,
        part: Microbatch,
        *,
        entropy_grad: bool = False,
        energy: bool = False,
    ) -> TokenScores:
        """Of one part's sampled tokens; log-probabilities (entropies on demand) are differentiable where gradients are enabled."""
        head = self.head  # determined in full precision
        with computing(self.compute, self.causal_lm.device.type):
            hidden_KH, mask_MT = response_hidden(self.decoder, rollouts, part, self.shared_prefix)
            targets_K = rollouts.tokens_NT[part.rows_M, : mask_MT.shape[1]].to(mask_MT.device)[mask_MT]
            if self.head_kernel == "liger" and not energy:
                stats = liger_logprobs(hidden_KH, head, targets_K, self.temperature)
            else:
                stats = token_logprobs(
                    hidden_KH,
                    head,
                    targets_K,
                    self.temperature,
                    with_entropy=True,
                    with_energy=energy,
                    backward_dtype=torch.bfloat16 if self.compute == "bfloat16_backward" else None,
                )
        assert stats.entropies_M is not None
        entropies_K = stats.entropies_M if entropy_grad else stats.entropies_M.detach()
        energies_MT = None if stats.energies_M is None else _scatter(stats.energies_M, mask_MT)
        return TokenScores(_scatter(stats.logprobs_M, mask_MT), _scatter(entropies_K, mask_MT), energies_MT, mask_MT)

    def parts(self, rollouts: Rollouts, prompts: list[int]) -> Iterator[Microbatch]:
        """Micro-batches of the distinct responses to this rank's part of the prompts, none above the token budget."""
        return microbatches(rollouts, self.world.mine(prompts), self.token_budget, distinct=True)

    def whole(self) -> Any:
        """The model with all of its weights, as samplers and checkpoints take it."""
        return self.model

    @torch.no_grad()
    def measure(self, rollouts: Rollouts, prompts: list[int], *, energy: bool = False) -> BatchScores:
        """The same for all responses to these prompts, without gradient: (N, T) float64 on the CPU, zero elsewhere."""
        found = BatchScores.zeros(rollouts)
        for part in self.parts(rollouts, prompts):
            scores = self.scores(rollouts, part, energy=energy)
            if not part.idle:
                found.place(part, scores)
        assert found.energies_NT is not None
        self.world.add(found.logprobs_NT, found.entropies_NT, found.energies_NT)
        first_N = rollouts.first_N
        energies_NT = found.energies_NT[first_N] if energy else None
        return BatchScores(found.logprobs_NT[first_N], found.entropies_NT[first_N], energies_NT)


def _scatter(values_K: Tensor, mask_MT: Tensor) -> Tensor:
    """The K values at the true entries of the mask, zero elsewhere."""
    return torch.zeros(mask_MT.shape, dtype=values_K.dtype, device=values_K.device).masked_scatter(mask_MT, values_K)
