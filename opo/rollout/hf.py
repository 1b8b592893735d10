"""Sampling with transformers in which duplicate prefixes are computed once.

Responses to a prompt share one row of the batch as long as their tokens are the same; the prompt and every common
prefix are therefore computed once per group. A row splits where its responses differ, and leaves the batch when they
are finished. Each response has uniform numbers of its own, drawn beforehand and turned into tokens by inverting the
cumulative distribution, so a sample does not depend on the other responses in the batch.

R rows of the batch (distinct prefixes), S responses that are not finished.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel, TopKLogitsWarper, TopPLogitsWarper

from opo.model.forward import evaluating, pad_left, positions
from opo.names import Compute
from opo.rollout.base import Samples, Sampling, grouped
from opo.rollout.decoding import packed_weights, shared_keys

BLOCK = 128  # tokens of the vocabulary per block; within a block sums are in the policy's precision
BELOW_ONE = 1 - 2**-52  # a uniform number that rounds to one would select no token


class HfSampler:
    """Samples with the module that is being trained, so its weights are never stale."""

    def __init__(self, max_sequences: int = 256, compute: Compute = "float32") -> None:
        self.max_sequences = max_sequences  # responses sampled at once; bounds the memory of keys and values
        self.compute: Compute = compute
        self.version = -1

    def load_weights(self, model: PreTrainedModel, version: int) -> None:
        self.model, self.version = model, version

    def close(self) -> None:
        """Nothing to free."""

    @torch.inference_mode()
    def generate(
        self,
        prompt_ids: list[list[int]],
        sampling: Sampling,
        generator: torch.Generator,
        which: Sequence[int] | None = None,
    ) -> Samples:
        """See `Sampler.generate`."""
        group, steps = sampling.group_size, sampling.max_new_tokens
        uniforms_NT = torch.rand(len(prompt_ids) * group, steps, generator=generator, dtype=torch.float64)
        if which is not None:
            prompt_ids = [prompt_ids[p] for p in which]
            uniforms_NT = uniforms_NT.view(-1, group, steps)[list(which)].view(-1, steps)
        if not prompt_ids:
            return Samples([], [], [], [])
        prompts_at_once = max(1, self.max_sequences // group)
        responses: list[list[int]] = []
        logprobs: list[list[float]] = []
        finished: list[bool] = []
        rows, half = min(len(prompt_ids), prompts_at_once) * group, self.compute == "bfloat16"
        products = torch.autocast(self.model.device.type, torch.bfloat16) if half else packed_weights(self.model, rows)
        with evaluating(self.model), products, shared_keys(self.model):
            for start in range(0, len(prompt_ids), prompts_at_once):
                part = prompt_ids[start : start + prompts_at_once]
                uniforms = uniforms_NT[start * group : (start + len(part)) * group]
                tokens_NT, logprobs_NT, lengths_N, finished_N = self._sample(part, sampling, uniforms)
                lengths = lengths_N.tolist()
                responses += [row[:length] for row, length in zip(tokens_NT.tolist(), lengths, strict=True)]
                logprobs += [row[:length] for row, length in zip(logprobs_NT.tolist(), lengths, strict=True)]
                finished += finished_N.tolist()
        versions = grouped([[self.version] * len(response) for response in responses], group)
        return Samples(grouped(responses, group), grouped(logprobs, group), grouped(finished, group), versions)

    def _sample(
        self, prompt_ids: list[list[int]], sampling: Sampling, uniforms_NT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens and log-probabilities (N, T), lengths and whether a stop token came (N,), on the CPU."""
        device, group, steps = self.model.device, sampling.group_size, sampling.max_new_tokens
        uniforms_NT = uniforms_NT.to(device)
        stops = torch.tensor(sampling.stop_token_ids, device=device)
        count = uniforms_NT.shape[0]
        tokens_NT = torch.zeros(count, steps, dtype=torch.int64, device=device)
        logprobs_NT = torch.zeros(count, steps, dtype=torch.float64, device=device)
        lengths_N = torch.full((count,), steps, device=device)
        finished_N = torch.zeros(count, dtype=torch.bool, device=device)

        ids_RL, mask_RL = pad_left(prompt_ids, device)
        position_R = mask_RL.sum(1)
        cache = DynamicCache(config=self.model.config)
        logits_RV = self.model(
            input_ids=ids_RL,
            attention_mask=mask_RL,
            position_ids=positions(mask_RL),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        growing_S = torch.arange(count, device=device)  # responses without a stop token so far
        row_S = growing_S // group
        for t in range(steps):
            uniforms_S = None if sampling.greedy else uniforms_NT[growing_S, t]
            token_S, logprobs_S = draw(policy_logits(logits_RV, sampling), row_S, uniforms_S)
            tokens_NT[growing_S, t], logprobs_NT[growing_S, t] = token_S, logprobs_S
            stopped_S = torch.isin(token_S, stops)
            finished_N[growing_S[stopped_S]] = True
            lengths_N[growing_S[stopped_S]] = t + 1
            if t + 1 == steps or bool(stopped_S.all()):
                break
            rows, vocabulary = logits_RV.shape
            branch_S = (row_S * vocabulary + token_S)[~stopped_S]
            branch_R, row_S = torch.unique(branch_S, return_inverse=True)
            growing_S, parent_R, token_R = growing_S[~stopped_S], branch_R // vocabulary, branch_R % vocabulary
            if len(parent_R) != rows or bool((parent_R != torch.arange(rows, device=device)).any()):
                cache.batch_select_indices(parent_R)
                mask_RL, position_R = mask_RL[parent_R], position_R[parent_R]
            mask_RL = F.pad(mask_RL, (0, 1), value=1)
            logits_RV = self.model(
                input_ids=token_R[:, None],
                attention_mask=mask_RL,
                position_ids=position_R[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            position_R = position_R + 1
        return tokens_NT.cpu(), logprobs_NT.cpu(), lengths_N.cpu(), finished_N.cpu()


def policy_logits(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """s with softmax(s) = pi(. | context): at least float32, over the temperature, -inf where truncated, (B, V)."""
    s_BV = (logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()) / sampling.temperature
    if sampling.top_k > 0:
        s_BV = _warped(TopKLogitsWarper(sampling.top_k), s_BV)
    if sampling.top_p < 1:
        s_BV = _warped(TopPLogitsWarper(sampling.top_p), s_BV)
    return s_BV


def _warped(warper: Any, s_BV: Tensor) -> Tensor:
    """What a processor of transformers leaves of s; these look at no ids."""
    return warper(None, s_BV)


def draw(s_RV: Tensor, row_S: Tensor, uniforms_S: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each sample a token from softmax(s) of its row, (S,), and the token's log-probability, (S,) float64.

    The token is the one whose interval of the cumulative distribution holds the uniform number, or, without uniform
    numbers, the likeliest one. The search goes first over blocks of the vocabulary and then inside the block, with
    float64 sums.
    """
    top_R1 = s_RV.amax(1, keepdim=True)
    e_RV = (s_RV - top_R1).exp()
    width = min(BLOCK, e_RV.shape[1])
    e_RKW = F.pad(e_RV, (0, -e_RV.shape[1] % width)).view(len(e_RV), -1, width)
    mass_RK = e_RKW.sum(2).double().cumsum(1)
    if uniforms_S is None:
        token_S = s_RV.argmax(1)[row_S]
    else:
        mass_SK = mass_RK[row_S]
        aim_S1 = uniforms_S[:, None].clamp(max=BELOW_ONE) * mass_SK[:, -1:]
        last = mass_SK.shape[1] - 1  # with NaN logits the search returns an index past the end
        block_S1 = torch.searchsorted(mass_SK, aim_S1, right=True).clamp(max=last)
        before_S1 = F.pad(mass_SK, (1, 0)).gather(1, block_S1)
        share_S1 = (aim_S1 - before_S1) / (mass_SK.gather(1, block_S1) - before_S1)
        inside_SW = e_RKW[row_S, block_S1[:, 0]].double().cumsum(1)
        place_S1 = torch.searchsorted(inside_SW, share_S1.clamp(max=BELOW_ONE) * inside_SW[:, -1:], right=True)
        token_S = (block_S1 * width + place_S1)[:, 0].clamp(max=s_RV.shape[1] - 1)
    return token_S, (s_RV[row_S, token_S] - top_R1[row_S, 0]).double() - mass_RK[row_S, -1].log()
