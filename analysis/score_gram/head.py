"""From hidden states to log-probabilities and back, at response positions only and a few at a time.

The model's own code runs between the decoder's last hidden state and the logits (head, bias, soft cap, scale): the decoder is
replaced for the moment by a function that returns the hidden states to be scored.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.score_gram.buffers import USUAL, Buffers
from analysis.score_gram.capture import Capture, replaced_forward
from analysis.score_gram.inputs import Batch, logits_of
from analysis.score_gram.layers import RecomputedOuter, linear, rule_of


@dataclass(frozen=True)
class Terms:
    """The S places of each response whose log-probability is summed: the index before the token, the token, its weight."""

    place_NS: Tensor
    token_NS: Tensor
    weight_NS: Tensor  # zero where a response has fewer than S terms
    number_N: Tensor  # of the response, for messages

    @classmethod
    def of(cls, batch: Batch) -> "Terms":
        is_term = batch.weights_NL[:, 1:] != 0
        size = max(int(is_term.sum(1).max()), 1)
        place_NS = is_term.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :size]
        token_NS, weight_NS = (x[:, 1:].gather(1, place_NS) for x in (batch.input_ids, batch.weights_NL))
        return cls(place_NS, token_NS, weight_NS, batch.number_N)


class LanguageModelHead:
    """The part of a causal model after the decoder's last hidden state, and a way to run it alone."""

    def __init__(self, model: nn.Module) -> None:
        name = type(model).__name__
        get_decoder: Any = getattr(model, "get_decoder", None)
        if get_decoder is None:
            raise ValueError(f"{name} has no get_decoder(), so its head cannot be run alone; use method='loop'")
        self.model, self.decoder = model, get_decoder()
        if (
            self.decoder is model
        ):  # a text model taken from a multimodal one (Llama 4) looks for its decoder under the larger model's name
            self.decoder = getattr(model, "model", model)
        if self.decoder is model:
            raise ValueError(f"{name} has no decoder apart from its head; use method='loop'")

    def hidden(self, inputs: dict[str, Any], after_decoder: Callable[[], None]) -> Tensor:
        """Last hidden states (N, L, features); the head runs on one position only, to show which layers it has."""
        run_decoder, outputs = self.decoder.forward, []

        def forward(*args: Any, **kwargs: Any) -> Any:
            outputs.append(run_decoder(*args, **kwargs))
            after_decoder()
            return with_hidden(outputs[0], outputs[0][0][:1, :1].detach())

        with replaced_forward(self.decoder, forward):
            self.model(**inputs)
        if len(outputs) != 1:
            raise ValueError(f"{type(self.model).__name__} calls its decoder {len(outputs)} times; use method='loop'")
        self.inputs, self.output = inputs, outputs[0]
        return outputs[0][0]

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's logits for these hidden states, of any shape but for the last dimension."""
        with replaced_forward(self.decoder, lambda *args, **kwargs: with_hidden(self.output, hidden)):
            return logits_of(self.model(**self.inputs))


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The decoder's output with other hidden states in it."""
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    return type(output)(**{**output, "last_hidden_state": hidden})


class HeadScores:
    """Log-probabilities of the terms, their gradient at the hidden states, and the head's own part of the scores."""

    def __init__(
        self,
        lm_head: LanguageModelHead,
        terms: Terms,
        temperature: float,
        dtype: torch.dtype,
        buffers: Buffers = USUAL,
    ) -> None:
        self.lm_head, self.terms, self.temperature, self.dtype, self.buffers = (
            lm_head,
            terms,
            temperature,
            dtype,
            buffers,
        )

    def backward(self, hidden_NLD: Tensor, capture: Capture) -> Tensor:
        """Gradient of the summed log-probabilities at the hidden states; `capture` sees the head's layers.

        d log pi(token) / d logits = (onehot(token) - softmax(logits / temperature)) / temperature.
        """
        place_NS = self.terms.place_NS
        index_NSD = place_NS[..., None].expand(-1, -1, hidden_NLD.shape[-1])
        self.hidden_NSD = hidden_NLD.detach().gather(1, index_NSD)
        wide = self._wide_layers(capture)
        capture.recomputed = set(wide)
        self.log_mass_NS = torch.full(place_NS.shape, torch.inf, dtype=self.dtype, device=place_NS.device)
        grad_NSD = torch.zeros_like(self.hidden_NSD)
        vocabulary = self.lm_head.logits(self.hidden_NSD[:1, :1]).shape[-1]
        for n, s in self._chunks(max(1, self.buffers.logits // vocabulary)):
            hidden = self.hidden_NSD[n, s].clone().requires_grad_()
            with capture.batch(*hidden.shape[:2], first=n.start, mode="head"):
                logits = self.lm_head.logits(hidden)
            scaled = logits.detach().to(self.dtype, copy=True).div_(self.temperature)
            self.log_mass_NS[n, s] = scaled.logsumexp(-1)
            scaled.sub_(self.log_mass_NS[n, s, None]).exp_()
            grad_logits = self._logit_gradient(scaled, self.terms.token_NS[n, s], self.terms.weight_NS[n, s], n.start)
            (grad_NSD[n, s],) = torch.autograd.grad(logits, hidden, grad_logits.to(logits.dtype))
        for layer in wide:
            self._recompute_later(layer, capture)
        capture.flush([p for p in capture.waiting if not capture.expected[p]])
        return torch.zeros_like(hidden_NLD).scatter_add_(1, index_NSD, grad_NSD)

    def _logit_gradient(self, softmax: Tensor, token: Tensor, weight: Tensor, first: int = 0) -> Tensor:
        """weight * (onehot - softmax) / temperature, in place of the softmax; tokens outside the slice have no one-hot."""
        weight = (weight / self.temperature)[..., None]
        if not softmax.isfinite().all():
            bad = int((~softmax.isfinite()).flatten(1).any(1).nonzero()[0]) + first
            raise ValueError(f"response {int(self.terms.number_N[bad])}: the log-probabilities are not finite")
        token = token[..., None]
        inside = (token >= 0) & (token < softmax.shape[-1])
        return softmax.mul_(-weight).scatter_add_(-1, token.clamp(0, softmax.shape[-1] - 1), weight * inside)

    def _chunks(self, positions: int) -> Iterator[tuple[slice, slice]]:
        """Whole responses, or parts of one, of at most `positions` positions."""
        counts = (self.terms.weight_NS != 0).sum(1).tolist()
        size = self.terms.place_NS.shape[1]
        step = max(1, positions // size)
        for n in range(0, len(counts), step):
            longest = max(counts[n : n + step])
            for s in range(0, longest, positions):
                yield slice(n, min(n + step, len(counts))), slice(s, min(s + positions, longest))

    def _wide_layers(self, capture: Capture) -> list[nn.Linear]:
        """Trainable layers of the head whose output gradients are too many to be kept."""
        places = self.terms.place_NS.numel()
        layers = [m for m in capture.discovered if isinstance(m, nn.Linear) and rule_of(m) is linear]
        return [
            m for m in layers if "weight" in capture.owners[m] and places * m.out_features > self.buffers.kept_logits
        ]

    def _recompute_later(self, layer: nn.Linear, capture: Capture) -> None:
        """Register the contribution of a wide layer's weight, whose output gradients are recomputed slice by slice of its outputs."""
        mass_NS = torch.zeros_like(self.log_mass_NS)

        def left_rows(low: int, high: int) -> Tensor:
            raw: list[Tensor] = []

            def sliced(x: Tensor) -> Tensor:
                bias = None if layer.bias is None else layer.bias[low:high]
                raw.append(F.linear(x, layer.weight[low:high], bias).detach().requires_grad_())
                return raw[0]

            with torch.enable_grad(), replaced_forward(layer, sliced):
                logits = self.lm_head.logits(self.hidden_NSD)
            scaled = logits.detach().to(self.dtype, copy=True).div_(self.temperature)
            scaled.sub_(self.log_mass_NS[..., None]).exp_()
            if low == 0:  # slices are asked for from the first on, once by each that sums them
                mass_NS.zero_()
            mass_NS.add_(scaled.sum(-1))
            grad_logits = self._logit_gradient(scaled, self.terms.token_NS - low, self.terms.weight_NS)
            if high == layer.out_features and ((mass_NS - 1).abs() > 1e-2)[self.terms.weight_NS != 0].any():
                name = type(self.lm_head.model).__name__
                raise ValueError(
                    f"{name}: its logits are no elementwise function of its head's output; use method='loop'"
                )
            return torch.autograd.grad(logits, raw[0], grad_logits.to(logits.dtype))[0].to(self.dtype)

        weight = capture.owners[layer]["weight"]
        capture.waiting.add(weight)
        capture.contributions[weight].append(RecomputedOuter(left_rows, self.hidden_NSD.to(self.dtype)))
