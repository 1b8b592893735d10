"""CAPO: leave out tokens for which a local quadratic model of the last layer foresees too large a step.

With h the hidden state that predicts token a, pi the policy over the `top_k` likeliest tokens (a among them), v = (e_a - pi) / temperature
and A the advantage, the token's gradient of the head is g = A v h^T. G is the direction that Adam would take after it, D = rate G the
step, u = G h / temperature the change of the logits for each unit of rate:

    objective = rate A (v.u) + rate^2/2 A ((v.u)^2 - u'(diag pi - pi pi') u)        change of A pi'/pi to third order
    policy = rate^2/2 (v.u)^2                                                       its mean is KL(pi || pi') to leading order

A token stays if |objective| < limit_objective and policy < limit_policy. Before Adam has moments, G = g.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from opo.batch import Rollouts
from opo.config import parts as options
from opo.model.forward import response_hidden
from opo.model.policy import Policy

CHUNK = 256  # tokens whose prospective moments (tokens x top_k x hidden) are held at once


class CurvatureMask(options.Curvature):
    """CAPO's mask on the tokens of any loss.

    `renormalise` divides a response's weights by its share of tokens that stay, as a mean over its own tokens would (CAPO); without, the
    denominator stays what it was (Dr. CAPO). Biased for grad E[r] by what is left out, which the model says is harmful.
    Source: arXiv 2510.00819 and its code; thresholds are those of CAPO there (Dr. CAPO: 5e-4 and 1e-3).
    """

    first_VD: Tensor | None = None  # moments of the head's gradient
    second_VD: Tensor | None = None
    updates = 0

    @torch.no_grad()
    def __call__(self, policy: Policy, rollouts: Rollouts, advantages_NT: Tensor, rate: float) -> Tensor:
        """What each token's weight is multiplied by, (N, T) float64; the kept tokens' mean gradient enters the moments."""
        factor_NT = torch.zeros(rollouts.mask_NT.shape, dtype=torch.float64)
        head = policy.head
        mean_VD, kept = torch.zeros_like(head.weight_VD, dtype=torch.float32), 0
        for part in policy.parts(rollouts, list(range(rollouts.num_prompts))):
            hidden_KH, mask_MT = response_hidden(policy.decoder, rollouts, part, policy.shared_prefix)
            place = torch.zeros_like(rollouts.mask_NT)
            place[part.rows_M, : mask_MT.shape[1]] = mask_MT.cpu()
            targets_K = rollouts.tokens_NT[part.rows_M, : mask_MT.shape[1]].to(hidden_KH.device)[mask_MT]
            advantages_K = advantages_NT[part.rows_M, : mask_MT.shape[1]].to(hidden_KH.device)[mask_MT]
            keeps = []
            for at in range(0, len(targets_K), CHUNK):
                tokens = slice(at, at + CHUNK)
                logits_KV = head.logits(hidden_KH[tokens]).float() / policy.temperature
                terms = token_step(
                    *top_logits(logits_KV, targets_K[tokens], self.top_k),
                    hidden_KH[tokens].float(),
                    advantages_K[tokens].float(),
                    temperature=policy.temperature,
                    mask=self,
                )
                objective_K, policy_K = quadratic(terms, rate)
                keep_K = (objective_K.abs() < self.limit_objective) & (policy_K < self.limit_policy)
                gradient_KCD = terms.gradient_KCD * keep_K[:, None, None]
                mean_VD.index_add_(0, terms.ids_KC.flatten(), gradient_KCD.flatten(0, 1))
                kept += int(keep_K.sum())
                keeps.append(keep_K)
            own_MT = torch.zeros(mask_MT.shape, dtype=torch.float64).masked_scatter(
                mask_MT.cpu(), torch.cat(keeps).double().cpu()
            )
            factor_NT[part.rows_M, : mask_MT.shape[1]] = own_MT
        factor_NT = factor_NT[rollouts.first_N] * rollouts.mask_NT
        self._remember(mean_VD / max(kept, 1))
        if self.renormalise:
            share_N1 = factor_NT.sum(1, keepdim=True) / rollouts.lengths_N[:, None]
            factor_NT = factor_NT / torch.where(share_N1 > 0, share_N1, 1.0)
        return factor_NT

    def _remember(self, gradient_VD: Tensor) -> None:
        if self.first_VD is None or self.second_VD is None:
            self.first_VD, self.second_VD = torch.zeros_like(gradient_VD), torch.zeros_like(gradient_VD)
        self.first_VD.lerp_(gradient_VD, 1 - self.beta1)
        self.second_VD.lerp_(gradient_VD.square(), 1 - self.beta2)
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        if self.first_VD is None or self.second_VD is None:
            return {}
        return {"first": self.first_VD, "second": self.second_VD, "updates": torch.tensor(self.updates)}

    def load(self, state: dict[str, Tensor]) -> None:
        if state:
            self.first_VD, self.second_VD, self.updates = state["first"], state["second"], int(state["updates"])


@dataclass(frozen=True)
class TokenStep:
    """Of K tokens with C likely continuations: what the quadratic model is made of."""

    ids_KC: Tensor
    probabilities_KC: Tensor
    score_KC: Tensor  # v
    gradient_KCD: Tensor  # A v h^T
    change_KC: Tensor  # u
    advantages_K: Tensor


def top_logits(logits_KV: Tensor, targets_K: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of the likeliest tokens with the sampled one among them, their probabilities among themselves, and the sampled one's place."""
    raised_KV = logits_KV.scatter(1, targets_K[:, None], torch.inf)
    ids_KC = raised_KV.topk(min(top_k, logits_KV.shape[1]), dim=1).indices
    probabilities_KC = logits_KV.gather(1, ids_KC).softmax(1)
    return ids_KC, probabilities_KC, (ids_KC == targets_K[:, None])


def token_step(
    ids_KC: Tensor,
    probabilities_KC: Tensor,
    sampled_KC: Tensor,
    hidden_KD: Tensor,
    advantages_K: Tensor,
    *,
    temperature: float,
    mask: CurvatureMask,
) -> TokenStep:
    """Gradient, prospective direction and change of logits of each token."""
    score_KC = (sampled_KC.to(probabilities_KC) - probabilities_KC) / temperature
    gradient_KCD = (advantages_K[:, None] * score_KC)[:, :, None] * hidden_KD[:, None, :]
    if mask.direction == "sgd" or mask.first_VD is None or mask.second_VD is None:
        direction_KCD = gradient_KCD
    else:
        time = mask.updates + 1
        first_KCD = torch.lerp(mask.first_VD[ids_KC], gradient_KCD, 1 - mask.beta1) / (1 - mask.beta1**time)
        second_KCD = torch.lerp(mask.second_VD[ids_KC], gradient_KCD.square(), 1 - mask.beta2) / (1 - mask.beta2**time)
        direction_KCD = first_KCD / (second_KCD.sqrt() + mask.eps)
    change_KC = (direction_KCD * hidden_KD[:, None, :]).sum(2) / temperature
    return TokenStep(ids_KC, probabilities_KC, score_KC * temperature, gradient_KCD, change_KC, advantages_K)


def quadratic(step: TokenStep, rate: float) -> tuple[Tensor, Tensor]:
    """(objective, policy) of each token, as in the docstring of this file."""
    slope_K = (step.score_KC * step.change_KC).sum(1)
    mean_K = (step.probabilities_KC * step.change_KC).sum(1)
    spread_K = (step.probabilities_KC * step.change_KC.square()).sum(1) - mean_K.square()
    objective_K = rate * step.advantages_K * slope_K
    objective_K = objective_K + rate**2 / 2 * step.advantages_K * (slope_K.square() - spread_K)
    return objective_K, rate**2 / 2 * slope_K.square()
