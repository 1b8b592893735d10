"""Variance of estimators that are not one weight a response: token-level algorithms, off-policy losses, and any loss at all.

One replicate is a batch of P prompts with G responses each, as an update sees it; a record of P prompts with R responses holds
K = floor(R / G) of them that share no response. With w_nt = -dLoss/dlogprob_nt the estimate of replicate k is

    g_k = sum_nt w_nt grad log pi_nt = sum_n v_n,      v_n = sum_t w_nt grad log pi_nt,

so the Gram matrix of the vectors (v_1 .. v_N, z_1 .. z_N) holds all that is needed: `score_gram` over the responses twice, with
token weights w and with ones (and N vectors more for each further estimator). The reference, whose mean is grad E[r] exactly, is

    u_k = (1/P) sum_p (1/G) sum_i rho_i (r_i - b_i) z_i,      b_i the mean reward of the others of its group,

rho_i = pi(y_i) / mu(y_i) where another policy mu sampled the responses, else one. Estimators that couple the prompts of a batch
(PPO's whitening, REINFORCE++) are measured as they are, on records of whole batches, which are then what intervals are over.
A loss that weighs no scores (full entropy or KL bonuses, masks by hidden states) takes the slow way, a backward pass a replicate.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from analysis.score_gram.core import score_gram, score_of, trainable_parameters
from analysis.score_gram.inputs import Batch, causal_model
from analysis.variance.compare import moments_from_gram
from analysis.variance.intervals import resample_counts
from analysis.variance.moments import Moments
from analysis.variance.partition import Index, partitions
from analysis.variance.table import Table, table_of
from opo.algorithms import score_weights
from opo.baselines import leave_one_out
from opo.batch import Rollouts
from opo.model.forward import evaluating

REFERENCE = "leave_one_out"

TokenWeights = Callable[[Rollouts, Tensor], Tensor]  # of a replicate and the policy's log-probabilities, (N, T)
Loss = Callable[[nn.Module, Rollouts], Tensor]  # of a replicate: the scalar that an update goes down


def compare_token_weights(
    model: nn.Module,
    records: Sequence[Rollouts],
    group_size: int,
    estimators: Sequence[str] | Mapping[str, str | TokenWeights],
    rng: np.random.Generator,
    *,
    num_bootstrap: int = 2000,
    num_partitions: int = 1,
    temperature: float = 1.0,
    logprobs: Sequence[Tensor] | None = None,
    **passes: Any,
) -> Table:
    """A table of `leave_one_out` and of token-weighted estimators over the same replicates; intervals are over `records`.

    `records`: one for each prompt, or for each batch of prompts where estimators couple them. `estimators`: names of
    `opo.algorithms`, or a mapping from labels to names or functions; what an algorithm needs (logit_energy_NT, values_NT ...) is
    a field of the records. `logprobs`: for each record (N, T), of the policy that is differentiated, where another one sampled.
    `passes` go to `score_gram`, which runs `num_partitions` times for each record. Estimators are known up to the loss's scale, so
    only scale-free measures mean anything. Raises ValueError on an unscored response and where there are not two groups.
    """
    named = estimators if isinstance(estimators, Mapping) else {name: name for name in estimators}
    weigh = {name: partial(_algorithm, what) if isinstance(what, str) else what for name, what in named.items()}
    _check(records, group_size, num_partitions, list(named))
    if logprobs is not None and (len(logprobs) != len(records) or any(r.logprobs_NT is None for r in records)):
        raise ValueError("logprobs= needs one tensor for each record, and records with the sampler's own logprobs_NT")
    moments_of: dict[str, list[Moments]] = {name: [] for name in [REFERENCE, *weigh]}
    for r, record in enumerate(records):
        sampled_NT = torch.zeros(record.mask_NT.shape) if record.logprobs_NT is None else record.logprobs_NT
        current_NT = (sampled_NT if logprobs is None else logprobs[r]).double()
        for index_KPG in _replicates(record, group_size, num_partitions, rng):
            rows_KM = np.stack([_rows(record, index_PG).numpy() for index_PG in index_KPG])
            used_N, place_KM = np.unique(rows_KM, return_inverse=True)
            weights_ENT = torch.zeros(len(weigh) + 1, *record.mask_NT.shape, dtype=torch.float64)
            weights_ENT[-1] = record.mask_NT
            plain_KN = np.zeros((len(rows_KM), len(used_N)))
            for k, (index_PG, rows_M) in enumerate(zip(index_KPG, torch.from_numpy(rows_KM), strict=True)):
                replicate, now_MT = take(record, index_PG), current_NT[rows_M]
                for e, function in enumerate(weigh.values()):
                    weights_ENT[e, rows_M] = function(replicate, now_MT).double()
                ratio_M = ((now_MT - sampled_NT[rows_M]) * replicate.mask_NT).sum(1).exp()
                plain_KN[k, place_KM.reshape(rows_KM.shape)[k]] = ratio_M * _leave_one_out(replicate)
            inputs = [sequences(record, weights_NT) for weights_NT in weights_ENT]
            ids, attended, response, weights = (torch.cat([x[used_N] for x in c]) for c in zip(*inputs, strict=True))
            gram = score_gram(model, ids, attended, response, weights, temperature=temperature, **passes)
            for name, moments in _moments(gram, plain_KN, place_KM.reshape(rows_KM.shape), list(weigh)).items():
                moments_of[name].append(moments)
    return _table(moments_of, group_size, num_partitions, num_bootstrap, rng)


def compare_losses(
    model: nn.Module,
    records: Sequence[Rollouts],
    group_size: int,
    losses: Mapping[str, Loss],
    rng: np.random.Generator,
    *,
    num_bootstrap: int = 2000,
    num_partitions: int = 1,
    temperature: float = 1.0,
) -> Table:
    """The slow reference, for any differentiable loss of a replicate: whole gradients, one backward pass each.

    The records are of the model's own responses; all 2 K gradients of a record are held. Otherwise as above.
    """
    _check(records, group_size, num_partitions, list(losses))
    parameters = trainable_parameters(model)
    moments: dict[str, list[Moments]] = {name: [] for name in [REFERENCE, *losses]}
    for record in records:
        for index_KPG in _replicates(record, group_size, num_partitions, rng):
            replicates = [take(record, index_PG) for index_PG in index_KPG]
            plain_KD = torch.stack([_leave_one_out_gradient(model, x, parameters, temperature) for x in replicates])
            gradients = {
                name: [_gradient(model, loss, x, parameters) for x in replicates] for name, loss in losses.items()
            }
            for name, own_KD in {REFERENCE: plain_KD, **{k: torch.stack(v) for k, v in gradients.items()}}.items():
                both_RD = torch.cat([own_KD, plain_KD])
                eye_KR = np.eye(len(replicates), len(both_RD))
                moments[name].append(
                    moments_from_gram(both_RD @ both_RD.T, eye_KR, np.roll(eye_KR, len(replicates), 1))
                )
    return _table(moments, group_size, num_partitions, num_bootstrap, rng)


def take(rollouts: Rollouts, index_PG: Index) -> Rollouts:
    """The record of some of each prompt's responses, by their places in its group, (P, G)."""
    rows_N, index = _rows(rollouts, index_PG), torch.from_numpy(index_PG)
    picked: dict[str, Any] = {field.name: getattr(rollouts, field.name) for field in fields(rollouts)}
    for name, value in picked.items():
        if value is not None and name.endswith("_NT"):
            picked[name] = value[rows_N]
        elif value is not None and name.endswith("_PG"):
            picked[name] = value.gather(1, index)
        elif value is not None and name == "answers":
            picked[name] = [[group[i] for i in places] for group, places in zip(value, index_PG.tolist(), strict=True)]
    return Rollouts(**picked)


def sequences(rollouts: Rollouts, weights_NT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token ids, attention mask, response mask and token weights of all responses, each (N, L), padded on the right."""
    ids, response, weights = [], [], []
    for n, mask_T in enumerate(rollouts.mask_NT):
        prompt = torch.tensor(rollouts.prompt_ids[n // rollouts.group_size])
        zeros = torch.zeros(len(prompt), dtype=torch.float64)
        ids.append(torch.cat([prompt, rollouts.tokens_NT[n, mask_T]]))
        response.append(torch.cat([zeros, torch.ones(int(mask_T.sum()))]).long())
        weights.append(torch.cat([zeros, weights_NT[n, mask_T]]))
    attended = [torch.ones_like(x) for x in ids]
    return tuple(pad_sequence(rows, batch_first=True) for rows in (ids, attended, response, weights))  # pyright: ignore


def _moments(gram: Any, plain_KN: np.ndarray, place_KM: Index, names: list[str]) -> dict[str, Moments]:
    """From the Gram matrix of E blocks of weighted scores and one of plain ones, each of N responses."""
    n, blocks = plain_KN.shape[1], len(names) + 1
    plain_KR = np.pad(plain_KN, ((0, 0), ((blocks - 1) * n, 0)))
    moments = {REFERENCE: moments_from_gram(gram, plain_KR, plain_KR)}
    for e, name in enumerate(names):
        own_KR = np.zeros_like(plain_KR)
        np.put_along_axis(own_KR, place_KM + e * n, 1.0, axis=1)
        moments[name] = moments_from_gram(gram, own_KR, plain_KR)
    return moments


def _table(
    moments: Mapping[str, list[Moments]],
    group_size: int,
    num_partitions: int,
    num_bootstrap: int,
    rng: np.random.Generator,
) -> Table:
    """Moments come partition by partition; those of one record are averaged, since each is unbiased."""
    joined = {name: Moments.join(parts) for name, parts in moments.items()}
    mean = {
        name: Moments(*(getattr(m, f.name).reshape(-1, num_partitions).mean(1) for f in fields(m)))
        for name, m in joined.items()
    }
    return table_of(mean, group_size, resample_counts(len(mean[REFERENCE].second), num_bootstrap, rng))


def _check(records: Sequence[Rollouts], group_size: int, num_partitions: int, names: list[str]) -> None:
    if not records or not names or num_partitions < 1:
        raise ValueError("at least one record, one estimator and one partition are needed")
    if REFERENCE in names:
        raise ValueError(f"{REFERENCE!r} is in every table: leave it out")
    for r, record in enumerate(records):
        if not bool(record.scored_N.all()):
            raise ValueError(f"record {r}: a response has no reward; leave it out of the record")
        if group_size < 2 or record.group_size < 2 * group_size:
            raise ValueError(
                f"record {r}: {record.group_size} responses do not hold two disjoint groups of {group_size} >= 2"
            )


def _replicates(record: Rollouts, group_size: int, num_partitions: int, rng: np.random.Generator) -> Iterator[Index]:
    """Random cuts into K replicates, (K, P, G) places in the groups."""
    for _ in range(num_partitions):
        yield np.stack([partitions(record.group_size, group_size, 1, rng)[0] for _ in record.prompt_ids], axis=1)


def _rows(rollouts: Rollouts, index_PG: Index) -> Tensor:
    """Rows among the N responses of places in the groups."""
    first_P1 = torch.arange(rollouts.num_prompts)[:, None] * rollouts.group_size
    return (torch.from_numpy(index_PG) + first_P1).flatten()


def _algorithm(name: str, replicate: Rollouts, logprobs_NT: Tensor) -> Tensor:
    return score_weights(name, replicate, policy_logprobs_NT=logprobs_NT)


def _leave_one_out(replicate: Rollouts) -> Tensor:
    """(r_i - b_i) / (P G) of each response."""
    return (replicate.rewards_PG - leave_one_out(replicate.rewards_PG)).flatten() / replicate.rewards_PG.numel()


def _leave_one_out_gradient(
    model: nn.Module, replicate: Rollouts, parameters: dict[nn.Parameter, str], temperature: float
) -> Tensor:
    weights_NT = _leave_one_out(replicate)[:, None] * replicate.mask_NT
    with evaluating(model), torch.enable_grad():
        batch = Batch.of(*sequences(replicate, weights_NT), temperature).on(model)
        return _vector(score_of(causal_model(model), batch, parameters).values())


def _gradient(model: nn.Module, loss: Loss, replicate: Rollouts, parameters: dict[nn.Parameter, str]) -> Tensor:
    with evaluating(model), torch.enable_grad():
        value = -loss(model, replicate)
        return _vector(torch.autograd.grad(value, list(parameters), allow_unused=True, materialize_grads=True))


def _vector(gradients: Any) -> Tensor:
    return torch.cat([g.detach().double().flatten() for g in gradients])
