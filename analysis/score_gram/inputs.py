"""The checked input batch of a Gram pass, and the plain log-probability that the fast paths must reproduce."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """N sequences of L tokens that begin at the left end; weights are zero where a token has no term."""

    input_ids: Tensor
    attention_mask: Tensor
    weights_NL: Tensor
    number_N: Tensor  # which response of the caller's each of them is, for messages; int64, on the CPU
    temperature: float = 1.0

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor,
        response_mask: Tensor,
        token_weights: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Self:
        """Check shapes, masks and values, and turn every row until it begins at the left. Raises ValueError in one line."""
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}: it must be positive and finite")
        check_shapes(input_ids, attention_mask, response_mask, token_weights)
        attended, response = attention_mask.bool(), response_mask.bool()
        if (response & ~attended).any():
            raise ValueError(f"response_mask marks padding at (n, t) = {first_index(response & ~attended)}")
        response = response & (attended.cumsum(1) > 1)  # the first attended token has nothing before it
        before = torch.nn.functional.pad(attended, (1, -1))
        if (response & ~before).any():
            raise ValueError(
                f"attention_mask has a hole just before the response token (n, t) = {first_index(response & ~before)}"
            )
        weights = response.double() if token_weights is None else token_weights.double().where(response, 0.0)
        if not weights.isfinite().all():
            raise ValueError(f"token_weights is not finite at (n, t) = {first_index(~weights.isfinite())}")
        order_NL, numbers = from_the_left(attended), torch.arange(len(input_ids))
        ids, mask, weights = (x.gather(1, order_NL) for x in (input_ids, attended.long(), weights))
        return cls(ids, mask, weights, numbers, temperature)

    def on(self, model: nn.Module) -> "Batch":
        """The same on the model's device, weights in the precision that its scores are summed in."""
        device, dtype = next(model.parameters()).device, working_dtype(model)
        ids, mask, weights = (
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.weights_NL.to(device, dtype),
        )
        return replace(self, input_ids=ids, attention_mask=mask, weights_NL=weights)

    def __len__(self) -> int:
        return len(self.input_ids)

    def distinct(self) -> tuple["Batch", Tensor, Tensor]:
        """The responses whose scores are no multiples of each other; for each of the N which of these it is, and how many times it.

        Scores are proportional where tokens and attention are equal and weights are proportional, up to the last token with a term:
        a causal decoder sees no more. Equal responses have a factor of exactly 1.
        """
        is_term = (self.weights_NL != 0).cpu()
        within = is_term.flip(1).cumsum(1).flip(1) > 0
        weights = self.weights_NL.cpu().double()
        scale_N = weights.gather(1, is_term.long().argmax(1, keepdim=True)).squeeze(
            1
        )  # the first weight that is not zero
        scale_N = scale_N.where(scale_N != 0, 1.0)
        told = (self.input_ids.cpu(), self.attention_mask.cpu(), weights / scale_N[:, None])
        columns = [x.where(within, 0).numpy() for x in told]
        number_of: dict[bytes, int] = {}
        of = [
            number_of.setdefault(b"".join(x.tobytes() for x in row), len(number_of))
            for row in zip(*columns, strict=True)
        ]
        first = [of.index(i) for i in range(len(number_of))]
        of_N, device = torch.tensor(of), self.input_ids.device
        factor_N = scale_N / scale_N[first][of_N]
        return self.select(first), of_N.to(device), factor_N.to(device)

    def select(self, rows: Iterable[int]) -> "Batch":
        index = torch.tensor(list(rows))
        there = index.to(self.input_ids.device)
        ids, mask, weights = (x[there] for x in (self.input_ids, self.attention_mask, self.weights_NL))
        return Batch(ids, mask, weights, self.number_N[index], self.temperature)

    def columns(self, kept: slice) -> "Batch":
        ids, mask, weights = (x[:, kept] for x in (self.input_ids, self.attention_mask, self.weights_NL))
        return Batch(ids, mask, weights, self.number_N, self.temperature)

    def context(self) -> slice:
        """Columns that a term depends on: from where the first response begins to just before the last scored token."""
        attended, scored = self.attention_mask.any(0).nonzero(), (self.weights_NL != 0).any(0).nonzero()
        return slice(int(attended[0]), int(scored[-1])) if len(scored) else slice(0, 1)

    def alone(self, n: int) -> "Batch":
        """Response n without its padding."""
        places = self.attention_mask[n].nonzero().flatten()
        return self.select([n]).columns(slice(int(places[0]), int(places[-1]) + 1))


def check_shapes(
    input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor, token_weights: Tensor | None
) -> None:
    """Raises ValueError unless all are (N, L) and the masks hold zeros and ones."""
    if input_ids.dim() != 2 or 0 in input_ids.shape or input_ids.is_floating_point():
        raise ValueError(
            f"input_ids must be a non-empty (N, L) integer tensor, not {tuple(input_ids.shape)} {input_ids.dtype}"
        )
    masks = {"attention_mask": attention_mask, "response_mask": response_mask}
    for name, x in {**masks, "token_weights": token_weights}.items():
        if x is not None and x.shape != input_ids.shape:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}, input_ids {tuple(input_ids.shape)}: they must be equal"
            )
    for name, x in masks.items():
        if not ((x == 0) | (x == 1)).all():
            raise ValueError(f"{name} may hold only zeros and ones")


def from_the_left(attended_NL: Tensor) -> Tensor:
    """Columns that turn each row until its first attended token is at its left end, (N, L).

    A causal decoder ignores padding on the right; padding on the left gives NaN in some (Bloom, MPT), whose positions
    that attend only to padding have nothing to normalise over.
    """
    first_N1 = attended_NL.long().argmax(1, keepdim=True)
    return (torch.arange(attended_NL.shape[1], device=attended_NL.device) + first_N1) % attended_NL.shape[1]


def first_index(flags_NL: Tensor) -> tuple[int, int]:
    n, t = flags_NL.nonzero()[0].tolist()
    return n, t


def working_dtype(model: nn.Module) -> torch.dtype:
    """float64 for a float64 model, float32 for every other."""
    return torch.float64 if any(p.dtype == torch.float64 for p in model.parameters()) else torch.float32


def causal_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft wrapper, with its adapters in place."""
    configs = getattr(model, "peft_config", {})
    if any(getattr(config, "is_prompt_learning", False) for config in configs.values()):
        raise ValueError(
            "peft prompt learning adds tokens to the sequence: only adapters on layers (such as LoRA) are supported"
        )
    unwrap: Any = getattr(model, "get_base_model", None) if configs else None
    inner = model if unwrap is None else unwrap()
    if getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"{type(inner).__name__} is an encoder-decoder: only causal decoders are supported")
    return inner


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Arguments of a causal model's forward; position ids count attended tokens."""
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if "position_ids" in accepted:
        positions_NL = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        tables = sum(isinstance(module, nn.Embedding) for module in model.modules())
        shared = tables == 1 and bool((positions_NL == positions_NL[:1]).all())
        # One row is enough for rotary positions and faster; a table of positions must be read by every response.
        inputs["position_ids"] = positions_NL[:1] if shared else positions_NL
    if "use_cache" in accepted or any(
        p.kind is p.VAR_KEYWORD for p in accepted.values()
    ):  # GraniteMoe has it in **kwargs
        inputs["use_cache"] = False
    return inputs


def logits_of(output: Any) -> Tensor:
    return output.logits if hasattr(output, "logits") else output[0]


def log_probability(model: nn.Module, batch: Batch) -> Tensor:
    """sum_nt weight_nt log pi(ids_nt | ids_n<t), by the model's plain forward pass."""
    logits = logits_of(model(**model_inputs(model, batch))).to(batch.weights_NL.dtype) / batch.temperature
    logprobs_NT = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    return (logprobs_NT * batch.weights_NL[:, 1:]).where(batch.weights_NL[:, 1:] != 0, 0.0).sum()
