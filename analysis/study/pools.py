"""The pool of one prompt: frozen responses and the measurements of their scores, in one file.

Everything a variance study reports is computed from these files, so an interrupted study resumes where it stopped, and
one that was cut into shards is merged by putting the files in one folder.
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from analysis.score_gram.byproducts import Byproducts
from analysis.score_gram.core import score_gram
from analysis.study.passes import planned_passes
from analysis.study.token_sums import mean_gap, token_sums
from analysis.variance.between_prompts import Projection, pool_coefficients
from opo.batch import Rollouts
from opo.errors import UserError
from opo.model.policy import Policy
from opo.system.atomic import replacing, write_text
from opo.system.records import read_json
from opo.system.seeding import generator_for

GIB = 2**30
SETTING = "setting.json"
TOKEN_ROWS = 32  # scores from which `token_norms` adds up those of single tokens


@dataclass(frozen=True, eq=False)
class PromptPool:
    """R scored responses to one prompt. Arrays of float64 or int64 unless said otherwise; K of the responses are measured token by token."""

    prompt_id: str
    prompt: str
    unscorable: int  # responses without a reward, which are left out
    responses: np.ndarray  # text
    rewards_R: np.ndarray
    lengths_R: np.ndarray
    logprobs_R: np.ndarray  # nats, of the whole response
    gram_RR: np.ndarray  # inner products of the scores
    logit_energy_R: np.ndarray  # sum over tokens of 1 - 2 pi + sum pi^2
    head_norm2_R: np.ndarray  # squared norm of the score's part in the output layer, its weight taken as untied
    parts: np.ndarray  # names of the parts of the model
    part_norm2_SR: np.ndarray  # squared norm of the score's part in each of them
    token_sum_norm2_K: np.ndarray  # |sum_t z_t|^2
    token_norm2_sum_K: np.ndarray  # sum_t |z_t|^2
    gradient_D: np.ndarray  # random projection of the unbiased gradient of the whole pool, float32
    gap_nats: (
        float  # mean absolute difference between the sampler's log-probabilities and the trainer's; NaN: not known
    )
    entropies_R: (
        np.ndarray
    )  # nats, sum over the response's tokens of the entropy of the distribution each was drawn from

    def save(self, path: Path, origin: str = "") -> None:
        """Write the file whole or not at all."""
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file, origin=np.str_(origin), **{field.name: getattr(self, field.name) for field in fields(self)}
            )

    @classmethod
    def load(cls, path: Path) -> "PromptPool":
        """The pool in a file. Raises UserError where it is damaged; numpy checks a checksum of every array."""
        arrays = read_arrays(path, [field.name for field in fields(cls)])
        values: dict[str, Any] = {name: array if array.ndim else array.item() for name, array in arrays.items()}
        return cls(**values)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of a pool's file by name. Raises UserError where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, LookupError, EOFError, NotImplementedError, BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged ({reason}); remove it, and the same command measures it again") from error


@dataclass(frozen=True)
class Measurement:
    """How a pool is measured."""

    memory_gib: float  # about what activations and captured gradients of one pass may take
    token_responses: int  # how many responses of a prompt are measured token by token
    seed: int = 0  # of `token_norms`
    verify: bool = True  # compare one score of the prompt with autograd's: once a model is enough


def measure_pool(
    policy: Policy, prompt_id: str, prompt: str, responses: list[str], rollouts: Rollouts, measurement: Measurement
) -> PromptPool:
    """Everything about the responses to one prompt (rollouts of P = 1). Raises UserError where fewer than two have a reward."""
    keep = rollouts.scored_N.nonzero().squeeze(1)
    if len(keep) < 2:
        raise UserError(
            f"prompt {prompt_id}: {len(keep)} of {rollouts.group_size} responses have a reward; a pool needs two"
        )
    inputs = tuple(x[keep] for x in sequences(rollouts))
    distinct, budget = len(rollouts.first_N[keep].unique()), measurement.memory_gib * GIB
    plan = planned_passes(policy.model, distinct, inputs[0].shape[1], budget)
    passes = {"responses_per_pass": plan.responses, "recompute": plan.recompute}
    gradient = Projection()
    byproducts = Byproducts(pool_coefficients(rollouts.rewards_PG[0, keep]), gradient.add)
    options = {"temperature": policy.temperature, "verify": measurement.verify, **passes}
    try:
        parts = score_gram(policy.model, *inputs, split="layer", byproducts=byproducts, **options)
    except ValueError as error:  # a layer whose scores are not captured exactly, or scores that are not finite
        raise UserError(f"prompt {prompt_id}: {error}") from error
    assert isinstance(parts, dict)
    sums = token_sums(policy, rollouts, keep, byproducts.hidden_N)
    by_token = [
        token_norms(
            policy,
            tuple(x[n : n + 1] for x in inputs),
            generator_for(measurement.seed, f"signs {prompt_id}", n),
            **passes,
        )
        for n in range(min(measurement.token_responses, len(keep)))
    ]
    gram_RR = torch.stack(list(parts.values())).sum(0).cpu().numpy()
    return PromptPool(
        prompt_id=prompt_id,
        prompt=prompt,
        unscorable=rollouts.group_size - len(keep),
        responses=np.array([responses[n] for n in keep.tolist()], dtype=np.str_),
        rewards_R=rollouts.rewards_PG[0, keep].numpy(),
        lengths_R=rollouts.lengths_N[keep].numpy(),
        logprobs_R=np.array([float(x.sum()) for x in sums.logprobs]),
        gram_RR=gram_RR,
        logit_energy_R=sums.energies_R.numpy(),
        head_norm2_R=sums.head_norm2_R.numpy(),
        parts=np.array(list(parts), dtype=np.str_),
        part_norm2_SR=torch.stack([gram.diagonal() for gram in parts.values()]).cpu().numpy(),
        token_sum_norm2_K=gram_RR.diagonal()[: len(by_token)].copy(),
        token_norm2_sum_K=np.array(by_token),
        gradient_D=gradient.numpy(),
        gap_nats=mean_gap(sums.logprobs, rollouts, keep),
        entropies_R=sums.entropies_R.numpy(),
    )


def sequences(rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and response mask, each (N, L), of the responses to one prompt, right-padded."""
    prompt = torch.tensor(rollouts.prompt_ids[0]).expand(rollouts.group_size, -1)
    ids_NL = torch.cat([prompt, rollouts.tokens_NT], 1)
    response_NL = torch.cat([torch.zeros_like(prompt, dtype=torch.bool), rollouts.mask_NT], 1)
    present_NT = rollouts.mask_NT if rollouts.present_NT is None else rollouts.present_NT
    attended_NL = torch.cat([torch.ones_like(prompt, dtype=torch.bool), present_NT], 1)
    return ids_NL, attended_NL.long(), response_NL.long()


def token_norms(
    policy: Policy, inputs: tuple[Tensor, ...], signs: torch.Generator, rows: int = TOKEN_ROWS, **passes: Any
) -> float:
    """sum_t |z_t|^2 of one response, |sum_t z_t|^2 where the scores of its tokens are orthogonal (OPO's assumption).

    Each score takes a backward pass of its own. Of up to `rows` tokens every one has it; of more, tokens that are `rows` places
    apart share one with random signs e, since E |sum_t e_t z_t|^2 = sum_t |z_t|^2: unbiased, and products of nearby tokens, the
    large ones, stay out of it. (Probing of a trace: Hutchinson 1990; Tang and Saad 2012.)
    """
    ids_1L, attended_1L, response_1L = inputs
    places = response_1L[0].nonzero().squeeze(1)
    width, size = int(places[-1]) + 1, min(rows, len(places))
    sign_T = 2.0 * torch.randint(0, 2, (len(places),), generator=signs) - 1
    weights_ML = torch.zeros(size, width, dtype=torch.float64)
    weights_ML[torch.arange(len(places)) % size, places.cpu()] = sign_T.double()
    ids_ML, attended_ML = (x[:, :width].expand(size, -1) for x in (ids_1L, attended_1L))
    gram_MM = score_gram(
        policy.model,
        ids_ML,
        attended_ML,
        (weights_ML != 0).long(),
        weights_ML,
        temperature=policy.temperature,
        verify=False,
        **passes,
    )
    assert isinstance(gram_MM, Tensor)
    return float(gram_MM.trace())


class PoolFolder:
    """The pools of one policy in one folder, made with one setting, which each of them bears."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        """Raises UserError naming the first key in which the folder's setting is another. Nothing is written."""
        self.path, self.setting, record = path, json.loads(json.dumps(setting)), path / SETTING
        if record.exists():
            self._refuse_other(read_json(record))
        elif any(path.glob("prompt-*.npz")):
            raise UserError(
                f"{record}: missing, so it is not known how the pools beside it were made; restore it from a copy"
            )

    def _refuse_other(self, recorded: dict[str, Any]) -> None:
        known = recorded.get("content")
        measured = known if isinstance(known, dict) else {}
        for file, digest in self.setting.get("content", {}).items():
            if measured.get(file, digest) != digest:
                raise UserError(
                    f"{file} has changed since the pools of {self.path} were measured; remove that folder to measure again, or choose another output"
                )
        for key in sorted({*recorded, *self.setting}):
            if recorded.get(key) != self.setting.get(key):
                raise UserError(
                    f"{self.path}: its pools were made with {key}={recorded.get(key)}, not {self.setting.get(key)}; choose another output"
                )

    def start(self) -> None:
        """Make the folder, and note the setting."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / SETTING).exists():
            write_text(self.path / SETTING, json.dumps(self.setting, indent=1, sort_keys=True) + "\n")

    def file(self, number: int) -> Path:
        return self.path / f"prompt-{number:06d}.npz"

    def missing(self, numbers: list[int]) -> list[int]:
        """Prompts that have no pool yet."""
        return [number for number in numbers if not self.file(number).exists()]

    def save(self, number: int, pool: PromptPool) -> None:
        pool.save(self.file(number), self._origin(number))

    def load(self, numbers: list[int]) -> list[PromptPool]:
        """The pools of these prompts. Raises UserError where one is damaged, or is of another prompt, policy or study."""
        for number in numbers:
            if read_arrays(self.file(number), ["origin"])["origin"] != self._origin(number):
                raise UserError(
                    f"{self.file(number)}: is the pool of another prompt, policy or study; remove it, and the same command measures it"
                )
        return [PromptPool.load(self.file(number)) for number in numbers]

    def _origin(self, number: int) -> str:
        """What a pool bears: the digest of its setting, and its prompt's number."""
        return f"{hashlib.sha256(json.dumps(self.setting, sort_keys=True).encode()).hexdigest()} {number}"
