"""Gradient estimators: what the optimizer is given in place of a batch's own gradient.

Both remember the last step, theta_t - theta_{t-1}, and a running estimate d of the gradient. With `normalise` the optimizer gets
d / |d|, whose length says nothing of how far the optimum is. Optimizers with a scale of their own (AdamW) undo that.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from opo.batch import Rollouts
from opo.config import parts as options
from opo.model.gradient import accumulate
from opo.model.policy import Policy

Tensors = list[Tensor]


class LookAhead(options.LookAhead):
    """N-PG-IGT: momentum of gradients that are taken at extrapolated weights (implicit gradient transport).

        sample and differentiate at   theta_t + ((1 - eta)/eta) (theta_t - theta_{t-1})
        d_t = (1 - eta) d_{t-1} + eta g_t          step along d_t / |d_t|

    A plain momentum averages gradients of old weights; for a quadratic objective the extrapolation makes the average one of the present.
    At the extrapolated weights the batch is exactly on-policy. Its bias is of second order in the step. The published schedule of eta
    could not be verified: eta is a constant here. (1 - eta)/eta multiplies the last step: small eta look far ahead.
    Source: Fatkhullin et al., arXiv 2302.01734; the form is that of later accounts of it.
    """

    previous: Tensors | None = None  # theta_{t-1}
    present: Tensors | None = None  # theta_t, while the policy is ahead of it
    average: Tensors | None = None  # d

    @torch.no_grad()
    def estimate(self, parameters: Sequence[nn.Parameter]) -> None:
        """Turn the gradients at the extrapolated weights into d, and put the policy back to theta_t for the step."""
        self.average = _blend(self.average, _gradients(parameters), self.eta)
        self.land(parameters)
        _give(parameters, self.average, self.normalise)
        self.previous = [p.clone() for p in parameters]

    @torch.no_grad()
    def extrapolate(self, parameters: Sequence[nn.Parameter]) -> None:
        """Move the policy ahead of where it is, to where the next batch is sampled."""
        if self.previous is None:
            return
        self.present = [p.clone() for p in parameters]
        for p, before in zip(parameters, self.previous, strict=True):
            p.add_(p - before, alpha=(1 - self.eta) / self.eta)

    @torch.no_grad()
    def land(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put the policy back to theta_t, if it is ahead of it."""
        if self.present is not None:
            _assign(parameters, self.present)
            self.present = None

    def state(self) -> dict[str, Tensor]:
        return _named("previous", self.previous) | _named("average", self.average)

    def load(self, state: dict[str, Tensor]) -> None:
        self.previous, self.average = _unnamed("previous", state), _unnamed("average", state)


class HessianCorrected(options.HessianCorrected):
    """(N-)HARPG: momentum that is corrected for the last step by a Hessian-vector product on a second batch.

        d_t = (1 - eta) (d_{t-1} + v_t) + eta g(theta_t)        v_t = B(theta^) (theta_t - theta_{t-1})
        theta^ = q theta_t + (1 - q) theta_{t-1}, q uniform in [0, 1], where the second batch is sampled
        B s = mean of  w (z.s) z + w (Hess log pi) s            over its responses of weight w and score z

    Over q and the second batch, v_t averages to the difference of the gradients at theta_t and theta_{t-1} (for weights that do not depend
    on the policy), so that d follows the gradient without bias. Twice the tokens of a plain step. The update was written from memory of
    the paper and is marked unverified; the average above is a test.
    Source: Fatkhullin et al., arXiv 2302.01734 (N-HARPG).
    """

    previous: Tensors | None = None
    average: Tensors | None = None
    correction: Tensors | None = None  # v_t

    @contextmanager
    def between(self, parameters: Sequence[nn.Parameter], share: float) -> Iterator[Tensors | None]:
        """The policy at theta^ for the block, which gets theta_t - theta_{t-1}; None before the first step."""
        if self.previous is None:
            yield None
            return
        present = [p.detach().clone() for p in parameters]
        step = [p - before for p, before in zip(present, self.previous, strict=True)]
        _assign(parameters, [share * p + (1 - share) * q for p, q in zip(present, self.previous, strict=True)])
        try:
            yield step
        finally:
            _assign(parameters, present)

    @torch.no_grad()
    def estimate(self, parameters: Sequence[nn.Parameter]) -> None:
        """Turn the batch's gradients and the correction into d."""
        gradients = _gradients(parameters)
        if self.average is not None and self.correction is not None:
            self.average = [d + v for d, v in zip(self.average, self.correction, strict=True)]
        self.average = _blend(self.average, gradients, self.eta)
        self.correction = None
        _give(parameters, self.average, self.normalise)
        self.previous = [p.clone() for p in parameters]

    def state(self) -> dict[str, Tensor]:
        return _named("previous", self.previous) | _named("average", self.average)

    def load(self, state: dict[str, Tensor]) -> None:
        self.previous, self.average = _unnamed("previous", state), _unnamed("average", state)


def hessian_vector(
    policy: Policy, rollouts: Rollouts, weights_NT: Tensor, step: Tensors, difference: float = 1.0
) -> Tensors:
    """-B s as the loss's gradient has it, for token weights that stand still: one tensor a parameter.

    The scores' products with s and the Hessian term are central differences over `difference` of the step; the policy and its gradients
    are left as they were.
    """
    parameters, prompts = policy.parameters(), list(range(rollouts.num_prompts))

    def at(shift: float, measure: Callable[[], Tensors]) -> Tensors:
        present = [p.detach().clone() for p in parameters]
        _assign(parameters, [p + shift * s for p, s in zip(present, step, strict=True)])
        try:
            return measure()
        finally:
            _assign(parameters, present)

    def gradient(token_weights_NT: Tensor) -> Tensors:
        before = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        accumulate(policy, rollouts, prompts, token_weights_NT)
        copies = [g.detach().clone() for g in _gradients(parameters)]
        for p, g in zip(parameters, before, strict=True):
            p.grad = g
        return copies

    def logprobs() -> Tensors:
        return [(policy.measure(rollouts, prompts).logprobs_NT * rollouts.mask_NT).sum(1)]

    def slope(measure: Callable[[], Tensors]) -> Tensors:
        ends = at(difference, measure), at(-difference, measure)
        return [(high - low) / (2 * difference) for high, low in zip(*ends, strict=True)]

    (along_N,) = slope(logprobs)
    curved = slope(lambda: gradient(weights_NT))
    outer = gradient(weights_NT * along_N[:, None])
    return [a + b for a, b in zip(outer, curved, strict=True)]


def _gradients(parameters: Sequence[nn.Parameter]) -> Tensors:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def _blend(average: Tensors | None, gradients: Tensors, eta: float) -> Tensors:
    if average is None:
        return [g.detach().clone() for g in gradients]
    return [(1 - eta) * d + eta * g for d, g in zip(average, gradients, strict=True)]


def _give(parameters: Sequence[nn.Parameter], average: Tensors, normalise: bool) -> None:
    norm = torch.nn.utils.get_total_norm(average) if normalise else torch.tensor(1.0)
    for p, d in zip(parameters, average, strict=True):
        p.grad = d / norm if bool(norm > 0) else d.clone()


@torch.no_grad()
def _assign(parameters: Sequence[nn.Parameter], values: Tensors) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


def _named(name: str, tensors: Tensors | None) -> dict[str, Tensor]:
    return {f"{name}.{i}": tensor for i, tensor in enumerate(tensors or [])}


def _unnamed(name: str, state: dict[str, Tensor]) -> Tensors | None:
    tensors_of = {key: value for key, value in state.items() if key.startswith(f"{name}.")}
    return [tensors_of[f"{name}.{i}"] for i in range(len(tensors_of))] or None
