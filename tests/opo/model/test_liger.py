"""Liger's log-probabilities against the tiled ones: on a GPU its kernel, elsewhere its own twin in torch under the same call."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small import random_rollouts, small_llama
from torch import nn

from opo.errors import UserError
from opo.model.gradient import accumulate
from opo.model.liger import check_liger, liger_logprobs
from opo.model.logprobs import Head, TokenStats, token_logprobs
from opo.model.policy import Policy

pytest.importorskip("liger_kernel", reason="needs liger-kernel (extra liger), which is for Linux")
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU: none here")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("temperature", "scale", "close"), [(1.0, 1.0, 1e-5), (0.7, 1.3, 2e-2)])
def test_values_and_gradients_are_the_tiled_ones(device: str, temperature: float, scale: float, close: float) -> None:
    """At one temperature both round the same products of bfloat16; elsewhere Liger rounds the scaled logits once more."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(700, 64, generator=g), torch.randn(1031, 64, generator=g) / 8
    targets, upstream = torch.randint(1031, (700,), generator=g).to(device), torch.randn(2, 700, generator=g).to(device)

    def measure(way: Any) -> tuple[TokenStats, list[torch.Tensor]]:
        leaves = [x.to(device).requires_grad_() for x in (hidden, weight)]
        with torch.autocast(device, torch.bfloat16):
            stats = way(leaves[0], Head(leaves[1], None, scale), targets, temperature)
        loss = (upstream[0] * stats.logprobs_M + upstream[1] * stats.entropies_M).sum()
        return stats, list(torch.autograd.grad(loss, leaves))

    expected, expected_gradients = measure(lambda *args: token_logprobs(*args, with_entropy=True))
    got, gradients = measure(liger_logprobs)
    assert got.logprobs_M.dtype == got.entropies_M.dtype == torch.float32  # type: ignore[union-attr]
    assert (got.logprobs_M - expected.logprobs_M).abs().max() < close
    assert (got.entropies_M - expected.entropies_M).abs().max() < 6e-2  # type: ignore[operator]
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert (a - b).norm() < 2e-2 * b.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_an_update_takes_it_and_energies_come_from_the_tiles(device: str) -> None:
    rollouts, found = random_rollouts(), []
    weights_NT = torch.randn(rollouts.mask_NT.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for kernel in ("tiled", "liger"):
        no_tokenizer: Any = None
        policy = Policy(small_llama().to(device), no_tokenizer, 0.7, compute="bfloat16", head_kernel=kernel)  # type: ignore[arg-type]
        seen = accumulate(policy, rollouts, [0, 1, 2, 3], weights_NT)
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        energies = replace(policy, token_budget=64).measure(rollouts, [0, 1], energy=True).energies_NT
        found.append((seen, gradient, energies))
    (seen, gradient, energies), (liger_seen, liger_gradient, liger_energies) = found
    gap_NT = (seen.logprobs_NT - liger_seen.logprobs_NT).abs()
    assert 0 < gap_NT.max() < 5e-2  # another rounding: so it was another way
    assert (seen.entropies_NT - liger_seen.entropies_NT).abs().max() < 5e-2
    assert (gradient - liger_gradient).norm() < 3e-2 * gradient.norm()
    assert torch.equal(energies, liger_energies)


def test_a_head_without_a_kernel_is_refused() -> None:
    weight = torch.zeros(5, 3)
    check_liger(Head(weight))
    for head in (Head(weight, bias_V=nn.Parameter(torch.zeros(5))), Head(weight, softcap=30.0)):
        with pytest.raises(
            UserError, match=r"^model\.head_kernel=liger: the model's head has a bias or a cap; allowed"
        ):
            check_liger(head)
