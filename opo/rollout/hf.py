"""Sampling with transformers, made for RL.

The prompt of a group is encoded once and its keys and values are repeated; finished responses leave the batch; the
log-probability of every sampled token is kept. Each response has uniform numbers of its own, drawn beforehand and turned into
tokens through the inverse of the cumulative distribution, so a sample depends neither on who shares the batch with it nor on when
the others finish.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from opo.forward import pad_left, positions
from opo.logprobs import log_softmax
from opo.precision import Compute, computing
from opo.rollout.base import Samples, Sampling


class HfSampler:
    """Samples with the very module that is trained, so its weights can never be stale."""

    def __init__(self, max_sequences: int = 256, compute: Compute = "float32") -> None:
        self.max_sequences = max_sequences  # responses sampled at once; bounds the memory of keys and values
        self.compute: Compute = compute
        self.version = -1

    def load_weights(self, model: PreTrainedModel, version: int) -> None:
        self.model, self.version = model, version

    def close(self) -> None:
        """Nothing is held beside the trained module."""

    @torch.inference_mode()
    def generate(self, prompt_ids: list[list[int]], sampling: Sampling, generator: torch.Generator) -> Samples:
        """See `Sampler.generate`."""
        group, steps = sampling.group_size, sampling.max_new_tokens
        uniforms_NT = torch.rand(len(prompt_ids) * group, steps, generator=generator, dtype=torch.float64)
        prompts_at_once = max(1, self.max_sequences // group)
        responses: list[list[int]] = []
        logprobs: list[list[float]] = []
        finished: list[bool] = []
        training = self.model.training
        self.model.eval()
        for start in range(0, len(prompt_ids), prompts_at_once):
            part = prompt_ids[start : start + prompts_at_once]
            uniforms = uniforms_NT[start * group : (start + len(part)) * group]
            with computing(self.compute, self.model.device.type):
                tokens_NT, logprobs_NT, lengths_N, finished_N = self._sample(part, sampling, uniforms)
            lengths = lengths_N.tolist()
            responses += [row[:length] for row, length in zip(tokens_NT.tolist(), lengths, strict=True)]
            logprobs += [row[:length] for row, length in zip(logprobs_NT.tolist(), lengths, strict=True)]
            finished += finished_N.tolist()
        self.model.train(training)
        versions = _grouped([[self.version] * len(response) for response in responses], group)
        return Samples(_grouped(responses, group), _grouped(logprobs, group), _grouped(finished, group), versions)

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

        ids_BL, mask_BL = pad_left(prompt_ids, device)
        cache = DynamicCache(config=self.model.config)
        out = self.model(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            position_ids=positions(mask_BL),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.batch_repeat_interleave(group)
        logits_BV = out.logits[:, -1].repeat_interleave(group, 0)
        mask_BL = mask_BL.repeat_interleave(group, 0)
        position_B = mask_BL.sum(1)
        rows_B = torch.arange(count, device=device)  # which response each row of the shrinking batch is
        for t in range(steps):
            logprobs_BV = policy_logprobs(logits_BV, sampling)
            token_B = logprobs_BV.argmax(1) if sampling.greedy else invert_cdf(logprobs_BV, uniforms_NT[rows_B, t])
            tokens_NT[rows_B, t] = token_B
            logprobs_NT[rows_B, t] = logprobs_BV.gather(1, token_B[:, None]).squeeze(1).double()
            stopped_B = torch.isin(token_B, stops)
            finished_N[rows_B[stopped_B]] = True
            lengths_N[rows_B[stopped_B]] = t + 1
            if t + 1 == steps or bool(stopped_B.all()):
                break
            if bool(stopped_B.any()):
                keep_B = (~stopped_B).nonzero().squeeze(1)
                cache.batch_select_indices(keep_B)
                rows_B, token_B, mask_BL, position_B = (
                    rows_B[keep_B],
                    token_B[keep_B],
                    mask_BL[keep_B],
                    position_B[keep_B],
                )
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(rows_B), 1)], 1)
            logits_BV = self.model(
                input_ids=token_B[:, None],
                attention_mask=mask_BL,
                position_ids=position_B[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            position_B = position_B + 1
        return tokens_NT.cpu(), logprobs_NT.cpu(), lengths_N.cpu(), finished_N.cpu()


def _grouped(flat: list[Any], group: int) -> list[list[Any]]:
    return [flat[i : i + group] for i in range(0, len(flat), group)]


def policy_logprobs(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """log pi(. | context) in at least float32, temperature and truncation applied, (B, V)."""
    logits_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
    logprobs_BV = log_softmax(logits_BV / sampling.temperature)
    if sampling.top_k > 0:
        threshold_B1 = logprobs_BV.topk(min(sampling.top_k, logprobs_BV.shape[1]), -1).values[:, -1:]
        logprobs_BV = logprobs_BV.masked_fill(logprobs_BV < threshold_B1, -torch.inf).log_softmax(-1)
    if sampling.top_p < 1:
        sorted_BV, order_BV = logprobs_BV.sort(-1, descending=True)
        before_BV = sorted_BV.exp().cumsum(-1) - sorted_BV.exp()
        drop_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(1, order_BV, before_BV >= sampling.top_p)
        logprobs_BV = logprobs_BV.masked_fill(drop_BV, -torch.inf).log_softmax(-1)
    return logprobs_BV


def invert_cdf(logprobs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The token whose interval of the cumulative distribution holds each uniform number, (B,); summed in float64."""
    cdf_BV = logprobs_BV.double().exp().cumsum(-1)
    token_B = torch.searchsorted(cdf_BV, (uniforms_B * cdf_BV[:, -1])[:, None], right=True).squeeze(1)
    return token_B.clamp(max=logprobs_BV.shape[1] - 1)
