"""Can this policy be trained here: everything that training asks of its architecture, once, on a few tokens.

An architecture is judged by what it does, not by its name: transformers has hundreds, and any of them may keep something else than
keys and values, look ahead, or want other arguments.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from opo.batch import Rollouts
from opo.errors import UserError
from opo.model.fits import first_line
from opo.model.forward import Microbatch, pad_left, positions
from opo.model.policy import Policy
from opo.model.precision import computing
from opo.system.world import World

PROMPTS = [[1, 2, 3], [1, 2, 3, 4, 5]]
RESPONSES = [[[4, 5], [5, 1]], [[1, 2], [3, 4]]]
PARENTS = [0, 0, 1, 1]
WHOLE = Microbatch([0, 1], torch.arange(4), torch.tensor(PARENTS))
# between two ways to compute the same in float32, where rounding is a thousandth of this; a real difference is far larger
LARGEST_GAP = 0.1  # nats
LARGEST_SHARE = 1e-3  # of the log-probability
SMALL = 2**20  # entries of a parameter whose gradient costs nothing


def refuse_untrainable(policy: Policy, where: str) -> None:
    """Raises UserError, which names the architecture, where sampling, scores or their gradient fail or disagree."""
    policy = replace(policy, head_kernel="tiled", world=World())
    kind = f"a {policy.causal_lm.config.model_type} model"
    try:
        logits_LV, other_LV = _logits(policy.model)
        if not bool(logits_LV.isfinite().all()):
            raise UserError(
                f"{where}: its logits are no finite numbers; allowed are a config.json and weights that belong together"
            )
        if float((logits_LV - other_LV).norm()) > 1e-4 * float(logits_LV.norm()):
            raise UserError(f"{where}: this model looks ahead (two-way attention); allowed are causal language models")
        plain_NT, shared_NT = (_scores(policy, shared) for shared in (False, True))
        sampled_N = _sampled(policy)
        _differentiate(policy, shared_NT)
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever an architecture raises, in one line
        raise UserError(f"{where}: {kind} cannot be trained here: {first_line(error)}") from error
    plain_NT, shared_NT = plain_NT.detach(), shared_NT.detach()
    rounded = policy.compute == "bfloat16" or plain_NT.dtype.itemsize < 4 or policy.causal_lm.dtype.itemsize < 4
    gaps = {
        "responses share a prompt": shared_NT - plain_NT,
        "it is sampled token by token": sampled_N - plain_NT[:, 1],
    }
    for case, gap in gaps.items():
        largest = float(gap.abs().max())
        if not (rounded or largest <= LARGEST_GAP + LARGEST_SHARE * float(plain_NT.abs().max())):
            raise UserError(
                f"{where}: {kind} gives log-probabilities that are {largest:.2g} nats off where {case}; allowed are models that keep "
                "keys and values of every token"
            )


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """After each of three tokens, (2, L, V), before one token and before another: they differ in BERT and its kin."""
    ids_2L = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device)
    return model(input_ids=ids_2L, use_cache=False).logits[:, :-1].double()


def _scores(policy: Policy, shared_prefix: bool) -> Tensor:
    """Log-probabilities of the responses, (N, T), by the trainer, with their graph."""
    rollouts = Rollouts.from_lists(PROMPTS, RESPONSES, [[0.0, 0.0]] * 2)
    return replace(policy, shared_prefix=shared_prefix).scores(rollouts, WHOLE).logprobs_MT


@torch.inference_mode()
def _sampled(policy: Policy) -> Tensor:
    """Those of the second tokens, (N,), as a sampler has them: keys and values of the prompts, a row for each response, one token."""
    model, device = policy.model, policy.causal_lm.device
    ids_BL, mask_BL = pad_left(PROMPTS, device)
    first_N, second_N = torch.tensor(RESPONSES, device=device).flatten(0, 1).unbind(1)
    parents_N = torch.tensor(PARENTS, device=device)
    cache = DynamicCache(config=model.config)
    with computing(policy.compute, device.type):
        model(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            position_ids=positions(mask_BL),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.batch_select_indices(parents_N)
        mask_NL = torch.nn.functional.pad(mask_BL[parents_N], (0, 1), value=1)
        logits_NV = model(
            input_ids=first_N[:, None],
            attention_mask=mask_NL,
            position_ids=positions(mask_NL)[:, -1:],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    return (logits_NV.double() / policy.temperature).log_softmax(1).gather(1, second_N[:, None])[:, 0]


def _differentiate(policy: Policy, logprobs_NT: Tensor) -> None:
    """Backward through all layers, for parameters whose gradients need no memory worth speaking of."""
    small = [p for p in policy.parameters() if p.numel() <= SMALL] or policy.parameters()[-1:]
    torch.autograd.grad(logprobs_NT.sum(), small, allow_unused=True)
