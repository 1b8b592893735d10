"""The critic of PPO: a copy of the policy's decoder with one number a token instead of logits."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from opo.algorithms import ALGORITHMS
from opo.batch import Rollouts
from opo.config.schema import RunConfig
from opo.gae import gae, value_loss
from opo.model.forward import Microbatch, response_hidden
from opo.model.gradient import clip_gradients, gradient_norm
from opo.model.policy import Policy
from opo.model.precision import computing


class Critic(nn.Module):
    """V(s_t), the expected return from the prefix that precedes response token t. Starts at zero everywhere."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.decoder: Any = copy.deepcopy(policy.decoder)
        for parameter in self.decoder.parameters():
            parameter.requires_grad_(True)
        weight = next(self.decoder.parameters())
        self.head = nn.Linear(policy.model.config.hidden_size, 1, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # micro-batches as the policy cuts and deals them
        self.parts, self.shared_prefix, self.world = policy.parts, policy.shared_prefix, policy.world

    def forward(self, rollouts: Rollouts, part: Microbatch) -> Tensor:
        """Values of the part's response tokens, (M, T) in float32 or float64, zero outside the responses."""
        with computing("float32", self.head.weight.device.type):
            hidden_KH, mask_MT = response_hidden(self.decoder, rollouts, part, self.shared_prefix)
            values_K = self.head(hidden_KH).squeeze(-1)
        values_K = values_K.to(torch.promote_types(values_K.dtype, torch.float32))
        return torch.zeros(mask_MT.shape, device=values_K.device, dtype=values_K.dtype).masked_scatter(
            mask_MT, values_K
        )

    @torch.no_grad()
    def values(self, rollouts: Rollouts) -> Tensor:
        """Values of all response tokens, (N, T) float64 on the CPU."""
        values_NT = torch.zeros(rollouts.mask_NT.shape, dtype=torch.float64)
        for part in self.parts(rollouts, list(range(rollouts.num_prompts))):
            if part.idle:
                continue
            values_MT = self(rollouts, part)
            values_NT[part.rows_M, : values_MT.shape[1]] = values_MT.double().cpu()
        self.world.add(values_NT)
        return values_NT[rollouts.first_N]


def update_critic(
    critic: Critic,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    prompts: list[int],
    config: RunConfig,
) -> tuple[float, float]:
    """One step of the critic towards the generalised returns of these prompts: its loss and unclipped gradient norm."""
    assert rollouts.values_NT is not None
    chosen = ALGORITHMS[config.algo.name]
    gamma, lam, clip = chosen.critic_hyperparameters(config.algo.hyperparameters)
    _, returns_NT = gae(rollouts.token_rewards_NT, rollouts.values_NT, rollouts.mask_NT, gamma, lam)
    inside_NT = rollouts.mask_NT & rollouts.scored_N[:, None]
    if chosen.critic_on_finished:
        inside_NT = inside_NT & ~rollouts.cut_N[:, None]
    tokens = max(1, int(inside_NT[rollouts.rows_of(prompts)].sum()))
    first_N, total = rollouts.first_N, 0.0
    for part in critic.parts(rollouts, prompts):
        if part.idle:
            continue
        rows_C = torch.isin(first_N, part.rows_M).nonzero().squeeze(1)  # all copies of the part's responses
        place_N = torch.zeros_like(first_N).index_put((part.rows_M,), torch.arange(len(part.rows_M)))
        values_MT = critic(rollouts, part)
        values_CT, width = values_MT[place_N[first_N[rows_C]].to(values_MT.device)], values_MT.shape[1]
        old_CT, target_CT, mask_CT = (
            x[rows_C, :width].to(values_MT.device) for x in (rollouts.values_NT, returns_NT, inside_NT)
        )
        # value_loss is a mean over the part's tokens: weighted by their share it adds up to the mean over all
        loss = value_loss(values_CT, old_CT.to(values_CT), target_CT.to(values_CT), mask_CT, clip) * (
            int(mask_CT.sum()) / tokens
        )
        loss.backward()
        total += loss.item()
    parameters = list(critic.parameters())
    critic.world.add_gradients(parameters)
    norm = gradient_norm(parameters)
    clip_gradients(parameters, norm, config.optim.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sum(critic.world.gather(total)), norm
