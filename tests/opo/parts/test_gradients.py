"""Gradient estimators: momentum with transport, the Hessian correction against the difference of gradients, and score norms."""

import pytest
import torch
from batches import close
from small import random_rollouts, small_gpt2

from opo.batch import Rollouts
from opo.model.gradient import accumulate
from opo.model.policy import Policy
from opo.model.score_norms import squared_score_norms
from opo.parts.gradients import HessianCorrected, LookAhead, hessian_vector

VOCABULARY = 29


def policy(seed: int = 0) -> Policy:
    return Policy(small_gpt2(seed), None)  # type: ignore[arg-type]


def every_token(rewards_V: torch.Tensor) -> Rollouts:
    """One prompt and every response of one token: an expectation is a sum over them."""
    return Rollouts.from_lists([[3, 5]], [[[token] for token in range(VOCABULARY)]], rewards_V[None])


def true_gradient(policy: Policy, rollouts: Rollouts) -> torch.Tensor:
    """-grad E[r], flat, by enumeration."""
    chance_NT = policy.measure(rollouts, [0]).logprobs_NT.exp()
    weights_NT = chance_NT * rollouts.rewards_PG.view(-1, 1)
    return flat(gradient(policy, rollouts, weights_NT))


def gradient(policy: Policy, rollouts: Rollouts, weights_NT: torch.Tensor) -> list[torch.Tensor]:
    policy.model.zero_grad()
    accumulate(policy, rollouts, list(range(rollouts.num_prompts)), weights_NT)
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in policy.parameters()]
    policy.model.zero_grad()
    return found


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors])


def moved(policy: Policy, step: list[torch.Tensor], share: float) -> None:
    with torch.no_grad():
        for p, s in zip(policy.parameters(), step, strict=True):
            p.add_(s, alpha=share)


def test_the_hessian_correction_averages_to_the_difference_of_gradients():
    """Over q by Gauss-Legendre quadrature, over the second batch by enumeration."""
    rng = torch.Generator().manual_seed(0)
    model, rollouts = policy(), every_token(torch.rand(VOCABULARY, generator=rng, dtype=torch.float64))
    step = [0.02 * torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in model.parameters()]
    before = true_gradient(model, rollouts)  # at theta_{t-1}
    nodes, weights = torch.tensor([-0.7745966692414834, 0.0, 0.7745966692414834]), [5 / 18, 8 / 18, 5 / 18]
    average = torch.zeros_like(before)
    for node, weight in zip(nodes.tolist(), weights, strict=True):
        q = (1 + node) / 2
        moved(model, step, q)
        chance_NT = model.measure(rollouts, [0]).logprobs_NT.exp()
        average += weight * flat(
            hessian_vector(model, rollouts, chance_NT * rollouts.rewards_PG.view(-1, 1), step, difference=1e-3)
        )
        moved(model, step, -q)
    moved(model, step, 1.0)
    difference = true_gradient(model, rollouts) - before
    assert (average - difference).norm() < 1e-3 * difference.norm()


def test_hessian_vector_leaves_policy_and_gradients_alone():
    model, rollouts = policy(), random_rollouts()
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    hessian_vector(model, rollouts, rollouts.mask_NT.double(), [0.01 * p.detach() for p in model.parameters()])
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())


@pytest.mark.parametrize("normalise", [True, False])
def test_look_ahead_by_hand_and_through_a_checkpoint(normalise):
    """Gradient descent on a parabola: d averages gradients at extrapolated points, the step starts where the policy stands."""
    parameter, rate, eta = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64)), 0.1, 0.25
    part = LookAhead(eta=eta, normalise=normalise)
    here, last, average = parameter.detach().clone(), None, None
    for _ in range(4):
        part.extrapolate([parameter])
        ahead = here if last is None else here + (1 - eta) / eta * (here - last)
        close(parameter.detach(), ahead)
        parameter.grad = parameter.detach().clone()
        part.estimate([parameter])
        average = ahead if average is None else (1 - eta) * average + eta * ahead
        close(parameter.detach(), here)
        with torch.no_grad():
            assert parameter.grad is not None
            parameter.sub_(rate * parameter.grad)
        last, here = here, here - rate * (average / average.norm() if normalise else average)
        close(parameter.detach(), here)
        again = LookAhead(eta=eta, normalise=normalise)
        again.load(part.state())
        part = again


def test_transport_makes_the_average_gradient_of_a_parabola_the_present_one():
    """For a linear gradient without noise, d is the gradient at theta_t exactly."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    part = LookAhead(eta=0.3, normalise=False)
    for _ in range(6):
        part.extrapolate([parameter])
        parameter.grad = 3 * parameter.detach().clone()
        part.estimate([parameter])
        assert parameter.grad is not None
        close(parameter.grad, 3 * parameter.detach(), 1e-12)
        with torch.no_grad():
            parameter.sub_(0.1 * parameter.grad)


def test_hessian_corrected_momentum_follows_the_gradient_of_a_parabola():
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    part = HessianCorrected(eta=0.3, normalise=False)
    for _ in range(6):
        with part.between([parameter], 0.4) as step:
            if step is not None:
                part.correction = [3 * s for s in step]
        parameter.grad = 3 * parameter.detach().clone()
        part.estimate([parameter])
        assert parameter.grad is not None
        close(parameter.grad, 3 * parameter.detach(), 1e-12)
        with torch.no_grad():
            parameter.sub_(0.1 * parameter.grad)


def test_score_norms_against_autograd_and_copies():
    model = policy()
    rollouts = random_rollouts(prompts=2, group=3)
    rows = torch.tensor([0, 1, 0, 3, 4, 5])  # the third response of the first prompt is the first one again
    rollouts = rollouts.with_(tokens_NT=rollouts.tokens_NT[rows], mask_NT=rollouts.mask_NT[rows])
    norms_PG = squared_score_norms(model, rollouts)
    for n in range(6):
        weights_NT = torch.zeros(rollouts.mask_NT.shape, dtype=torch.float64)
        weights_NT[n] = rollouts.mask_NT[n].double()
        close(norms_PG.view(-1)[n], flat(gradient(model, rollouts, weights_NT)).square().sum(), 1e-10)
    assert norms_PG[0, 0] == norms_PG[0, 2]
    assert all(p.grad is None for p in model.parameters())
