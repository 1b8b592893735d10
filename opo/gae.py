"""The mathematics of a critic: generalised advantage estimation and the clipped value loss."""

import torch
from torch import Tensor


def gae(
    token_rewards_NT: Tensor,
    values_NT: Tensor,
    mask_NT: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    goes_on_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantages and the critic's targets, both (N, T) and zero outside responses.

        delta_t = r_t + gamma V_{t+1} - V_t      A_t = sum_{k>=0} (gamma lam)^k delta_{t+k}      target_t = A_t + V_t

    V_t is the value before token t; after the last token it is zero, also where the token limit cut the response, unless
    `goes_on_N` says that the response goes on: then it is V of the last token again (T-PPO, arXiv 2506.15050). lam = 1 leaves the return minus V_t, unbiased whatever the critic; below one the bias is the critic's. Schulman et al.,
    arXiv 1506.02438, equation 16. `mask_NT` is right-padded, as in `Rollouts`.
    """
    mask_NT = mask_NT.bool()
    rewards_NT = torch.where(mask_NT, token_rewards_NT, 0.0)
    values_NT = torch.where(mask_NT, values_NT.detach(), 0.0)
    next_values_NT = torch.nn.functional.pad(values_NT[:, 1:], (0, 1))
    if goes_on_N is not None:
        last_NT = mask_NT & ~torch.nn.functional.pad(mask_NT[:, 1:], (0, 1))
        next_values_NT = torch.where(last_NT & goes_on_N[:, None], values_NT, next_values_NT)
    deltas_NT = rewards_NT + gamma * next_values_NT - values_NT
    advantages_NT = torch.zeros_like(deltas_NT)
    running_N = torch.zeros_like(deltas_NT[:, 0])
    for t in range(deltas_NT.shape[1] - 1, -1, -1):
        running_N = deltas_NT[:, t] + gamma * lam * running_N
        advantages_NT[:, t] = running_N
    return advantages_NT, advantages_NT + values_NT


def value_loss(
    values_NT: Tensor, old_values_NT: Tensor, returns_NT: Tensor, mask_NT: Tensor, clip: float | None = 0.2
) -> Tensor:
    """Half the squared error to the targets, averaged over the tokens of `mask_NT`, or its clipped form where larger.

        1/2 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2)

    Because of the maximum, moving a value further than `clip` from its value at sampling gains nothing; clip=None is
    the plain squared error. `mask_NT` must exclude unscored responses: they have no target.
    """
    errors_NT = (values_NT - returns_NT).square()
    if clip is not None:
        near_NT = old_values_NT + (values_NT - old_values_NT).clamp(-clip, clip)
        errors_NT = torch.maximum(errors_NT, (near_NT - returns_NT).square())
    return torch.where(mask_NT.bool(), errors_NT, 0.0).sum() / (2 * mask_NT.sum().clamp(min=1))
