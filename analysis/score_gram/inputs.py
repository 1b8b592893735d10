"""The responses whose scores are measured, checked once, and the plain log-probability that every faster way must agree with."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """N padded sequences of L tokens; weights are zero where a token has no term."""

    input_ids: Tensor
    attention_mask: Tensor
    weights_NL: Tensor
    temperature: float

    @classmethod
    def of(
        cls,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        response_mask: Tensor,
        token_weights: Tensor | None,
        temperature: float,
    ) -> Self:
        """Check shapes and masks and move everything to the model's device. Raises ValueError in one line."""
        if input_ids.dim() != 2 or 0 in input_ids.shape or input_ids.is_floating_point():
            raise ValueError(
                f"input_ids must be a non-empty (N, L) integer tensor, not {tuple(input_ids.shape)} {input_ids.dtype}"
            )
        given = {"attention_mask": attention_mask, "response_mask": response_mask, "token_weights": token_weights}
        for name, x in given.items():
            if x is not None and x.shape != input_ids.shape:
                raise ValueError(
                    f"{name} has shape {tuple(x.shape)}, input_ids {tuple(input_ids.shape)}: they must be equal"
                )
        for name, x in (("attention_mask", attention_mask), ("response_mask", response_mask)):
            if not ((x == 0) | (x == 1)).all():
                raise ValueError(f"{name} may hold only zeros and ones")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}: it must be positive and finite")
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
        device = next(model.parameters()).device
        order_NL = from_the_left(attended)
        return cls(
            input_ids.gather(1, order_NL).to(device),
            attended.gather(1, order_NL).long().to(device),
            weights.gather(1, order_NL).to(device, working_dtype(model)),
            temperature,
        )

    def __len__(self) -> int:
        return len(self.input_ids)

    def select(self, rows: Iterable[int]) -> "Batch":
        index = torch.tensor(list(rows), device=self.input_ids.device)
        return Batch(self.input_ids[index], self.attention_mask[index], self.weights_NL[index], self.temperature)

    def columns(self, kept: slice) -> "Batch":
        return Batch(self.input_ids[:, kept], self.attention_mask[:, kept], self.weights_NL[:, kept], self.temperature)

    def context(self) -> slice:
        """Columns that a term depends on: from where the first response begins to just before the last scored token."""
        attended, scored = self.attention_mask.any(0).nonzero(), (self.weights_NL != 0).any(0).nonzero()
        return slice(int(attended[0]), int(scored[-1])) if len(scored) else slice(0, 1)

    def alone(self, n: int) -> "Batch":
        """Response n without its padding."""
        places = self.attention_mask[n].nonzero().flatten()
        return self.select([n]).columns(slice(int(places[0]), int(places[-1]) + 1))


def from_the_left(attended_NL: Tensor) -> Tensor:
    """Columns that turn each row until its first attended token is at its left end, (N, L).

    A causal decoder takes no notice of padding on the right; padding on the left is NaN in some (Bloom, MPT), whose places
    that see nothing but padding have nothing to normalise over.
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
