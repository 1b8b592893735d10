"""Hidden states at the positions that predict response tokens, with every prompt encoded once for its whole group.

A plain forward pass repeats the prompt for each of its G responses. Here the decoder sees each prompt once, and the
responses attend to its keys and values; autograd adds what the responses send back to the prompt. The result is that of
the plain pass up to rounding (`shared_prefix=False` is that pass, kept as the slow reference).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from opo.batch import Rollouts
from opo.model.lengths import refuse_turning


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off; every module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def decoder_of(causal_lm: Any) -> Any:
    """A causal model of transformers without its head."""
    return causal_lm.base_model if causal_lm.base_model is not causal_lm else causal_lm.model


@dataclass(frozen=True)
class Microbatch:
    """Some responses of a batch: `rows_M` of N, each pointing at one of the prompts that are encoded for them."""

    prompts: list[int]  # prompts of the batch that are encoded
    rows_M: Tensor  # int64, responses of the batch
    prompt_of_M: Tensor  # int64, index into `prompts` for each row
    idle: bool = False  # only keeps step with other ranks: nothing of it counts


def microbatches(
    rollouts: Rollouts, prompts: list[int], token_budget: int, *, distinct: bool = False
) -> Iterator[Microbatch]:
    """Cut these prompts' responses so that no part has more than `token_budget` tokens after padding (one response at least).

    Longest first, so that the rows of a micro-batch have similar lengths; a group is split only where it does not fit.
    With `distinct`, duplicate responses appear once (`Rollouts.first_N`).
    """
    first = rollouts.first_N.tolist() if distinct else range(rollouts.num_prompts * rollouts.group_size)
    lengths = rollouts.lengths_N.tolist()
    prompt_lengths = [len(ids) for ids in rollouts.prompt_ids]
    groups = [
        sorted({first[n] for n in rollouts.rows_of([p]).tolist()}, key=lambda n: (-lengths[n], n)) for p in prompts
    ]
    order = sorted(range(len(prompts)), key=lambda i: -lengths[groups[i][0]])
    part: dict[int, list[int]] = {}

    def cost(candidate: dict[int, list[int]]) -> int:
        rows = [n for group in candidate.values() for n in group]
        longest_prompt = max(prompt_lengths[p] for p in candidate)
        return len(candidate) * longest_prompt + len(rows) * max(lengths[n] for n in rows)

    for i in order:
        p, remaining = prompts[i], groups[i]
        while remaining:
            take = len(remaining)
            while take > 1 and cost({**part, p: remaining[:take]}) > token_budget:
                take = 0 if part else take // 2
            if take and (not part or cost({**part, p: remaining[:take]}) <= token_budget):
                part[p], remaining = remaining[:take], remaining[take:]
                if not remaining:
                    break
            yield _microbatch(part)
            part = {}
    if part:
        yield _microbatch(part)


def _microbatch(part: dict[int, list[int]]) -> Microbatch:
    rows = [n for group in part.values() for n in group]
    prompt_of = [i for i, group in enumerate(part.values()) for _ in group]
    return Microbatch(list(part), torch.tensor(rows), torch.tensor(prompt_of))


def pad_left(sequences: list[list[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Token ids (B, L) padded with zeros on the left, and their mask (int64)."""
    width = max(len(ids) for ids in sequences)
    ids_BL = torch.tensor([[0] * (width - len(ids)) + ids for ids in sequences], device=device)
    mask_BL = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences], device=device)
    return ids_BL, mask_BL


def positions(mask_BL: Tensor) -> Tensor:
    """Position ids that do not depend on padding: (cumsum(mask) - 1) clamped at zero."""
    return (mask_BL.cumsum(1) - 1).clamp(min=0)


def response_hidden(
    decoder: PreTrainedModel | Any, rollouts: Rollouts, part: Microbatch, shared_prefix: bool = True
) -> tuple[Tensor, Tensor]:
    """Last hidden states that predict the part's response tokens, (K, H) for its K = sum of lengths tokens, row by row.

    Also returns the part's response mask (M, T): `hidden_KH[k]` belongs to the k-th true entry of it. Raises UserError for sequences
    that change how the model rotates its prompts (`opo.model.lengths`).
    """
    device = next(decoder.parameters()).device
    mask_MT = rollouts.mask_NT[part.rows_M]
    width = int(mask_MT.sum(1).max())
    refuse_turning(decoder.config, max(len(rollouts.prompt_ids[p]) for p in part.prompts) + width)
    mask_MT = mask_MT[:, :width].to(device)
    tokens_MT = rollouts.tokens_NT[part.rows_M, :width].to(device)
    prompts_BL, prompt_mask_BL = pad_left([rollouts.prompt_ids[p] for p in part.prompts], device)
    prompt_of_M = part.prompt_of_M.to(device)
    fed_mask_MT = mask_MT[:, :-1].long()
    full_mask_ML = torch.cat([prompt_mask_BL[prompt_of_M], fed_mask_MT], 1)
    length = prompts_BL.shape[1]

    if not shared_prefix:
        ids_ML = torch.cat([prompts_BL[prompt_of_M], tokens_MT[:, :-1]], 1)
        out = decoder(
            input_ids=ids_ML, attention_mask=full_mask_ML, position_ids=positions(full_mask_ML), use_cache=False
        )
        return out.last_hidden_state[:, length - 1 :][mask_MT], mask_MT

    prefix = decoder(
        input_ids=prompts_BL, attention_mask=prompt_mask_BL, position_ids=positions(prompt_mask_BL), use_cache=True
    )
    first_M1H = prefix.last_hidden_state[prompt_of_M, -1:]
    if width == 1:
        return first_M1H[mask_MT], mask_MT
    cache = prefix.past_key_values
    cache.batch_select_indices(prompt_of_M)
    rest = decoder(
        input_ids=tokens_MT[:, :-1],
        attention_mask=full_mask_ML,
        position_ids=positions(full_mask_ML)[:, length:],
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([first_M1H, rest.last_hidden_state], 1)[mask_MT], mask_MT
